# SPDX-License-Identifier: Apache-2.0
"""``debiased_entropy`` and its backward: the seven kinds of tests."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

import mdft_fast
from mdft_fast import reference
from mdft_fast.reference import DebiasedEntropy
from tests.ops.inputs import (
    BF16,
    DTYPES,
    F16,
    F32,
    F64,
    Rows,
    assert_bits_hold,
    changed,
    make_rows,
    name,
    outcome,
)
from tests.tolerance import assert_no_worse_than_eager

OPS = torch.ops.mdft_fast
INF = math.inf
EITHER = pytest.mark.parametrize(
    "f", [mdft_fast.debiased_entropy_loss, reference.debiased_entropy], ids=["kernel", "reference"]
)

# What the objective can be; between them every switch takes every value.
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "adamerging": {"alpha": 0.0, "filter": False, "reweight": "off"},
    "meta": {"entropy_of": "meta", "alpha": 2.5},
    "normalized": {"reweight": "normalized", "mu": 0.7},
    "cross-entropy": {"use_entropy": False, "filter": False, "reweight": "off", "alpha": 0.5},
    "unfiltered": {"filter": False, "entropy_of": "meta", "reweight": "normalized"},
    "divided": {"divide_by": (2.0, 4.0), "reweight": "normalized"},
}


def extreme(device: torch.device, value: float) -> Rows:
    """Logits as large as float16 nearly holds: softmax is one-hot, or a tie of a few."""
    rows = make_rows([(16, 5), (16, 10), (16, 33)], device)
    for z, t in zip(*rows, strict=True):
        z.copy_(z.sign() * value)
        t.copy_(t.sign() * value)
    return rows


def impossible(device: torch.device) -> Rows:
    """Some classes ruled out with -inf, by the teacher wherever by the meta-model."""
    rows = make_rows([(16, 5), (16, 10), (16, 33)], device)
    for z, t in zip(*rows, strict=True):
        out = torch.rand(z.shape, generator=torch.Generator().manual_seed(7)).to(device) < 0.4
        out[:, 1] = False
        t.masked_fill_(out, -INF)
        z.masked_fill_(out & (torch.arange(16, device=device)[:, None] % 2 == 0), -INF)
    return rows


def one_hot(device: torch.device) -> Rows:
    """Teachers that are certain: p is exactly one-hot, H(p) exactly 0."""
    rows = make_rows([(16, 5), (16, 10), (16, 33)], device)
    for t in rows.teacher:
        t.copy_(torch.nn.functional.one_hot(t.argmax(1), t.shape[1]) * 2e4)
    return rows


# Each case holds rows of one kind, so that its largest error says something about each of them.
CASES: dict[str, Any] = {
    "empty": lambda device: make_rows([(0, 5), (0, 3)], device),
    "one class": lambda device: make_rows([(4, 1), (3, 1)], device),
    "one row": lambda device: make_rows([(1, 7)] * 16, device),
    "one vector": lambda device: make_rows([(8, 8), (8, 16)], device),
    "tails": lambda device: make_rows([(16, c) for c in (2, 3, 7, 9, 15, 17)], device),
    "many classes": lambda device: make_rows([(8, c) for c in (100, 242, 397, 1000)], device),
    "a vocabulary": lambda device: make_rows([(4, 20_000), (4, 30_000)], device),
    "many tasks": lambda device: make_rows([(1 + k % 5, 2 + 3 * k) for k in range(20)], device),
    "sure": lambda device: make_rows([(16, 10), (16, 43)], device, scale=15.0),
    "unsure": lambda device: make_rows([(16, 10), (16, 43)], device, scale=0.01),
    "extreme": lambda device: extreme(device, 1e4),
    "-inf": impossible,
    "one-hot teachers": one_hot,
}


class Results(NamedTuple):
    value: DebiasedEntropy
    grad: list[Tensor]

    def all(self) -> list[Tensor]:
        return [*self.value, *self.grad]


def loss_factor(k: int, K: int) -> float:
    return 0.5 + k / K


def chosen(options: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Returns options for these rows: of a ``divide_by`` as many, over and over, as tasks."""
    if not isinstance(options.get("divide_by"), tuple):
        return options
    z = rows.logits[0]
    numbers = itertools.islice(itertools.cycle(options["divide_by"]), len(rows.logits))
    dtype = reference.accumulator(z.dtype)
    return {**options, "divide_by": torch.tensor([*numbers], dtype=dtype, device=z.device)}


def run(function: Any, rows: Rows, options: dict[str, Any]) -> Results:
    """Runs forward and backward; each task's loss has its own weight."""
    options = chosen(options, rows)
    logits = [z.detach().clone().requires_grad_() for z in rows.logits]
    value = function(logits, rows.teacher, **options)
    sum(loss * loss_factor(k, len(logits)) for k, loss in enumerate(value.loss)).backward()
    return Results(value, [z.grad for z in logits])


def gradient_scale(rows: Rows, value: DebiasedEntropy, options: dict[str, Any]) -> Tensor:
    """Returns the largest term of each row's gradient: what q - p and q (log q + H) are made of."""
    scales, weights = [], value.weight.split([len(z) for z in rows.logits])
    divide_by = chosen(options, rows).get("divide_by")
    for k, (z, t, weight) in enumerate(zip(*rows.to(F64), weights, strict=True)):
        q, p = z.softmax(1), t.softmax(1)
        size = options.get("alpha", 1) * (p + q)
        if options.get("use_entropy", True):
            # log q = z - max - log s, and s >= 1 is rounded: so log q errs as a number of size 1.
            log_q = q.clamp(min=1e-300).log()
            size = size + q * (reference.entropy(z)[:, None] + 1 - log_q)
        kept = max(1, int((weight > 0).sum()))
        factor = loss_factor(k, len(rows.logits)) / (kept if divide_by is None else divide_by[k])
        scales.append(size.amax(1, keepdim=True) * weight[:, None] * factor)
    return torch.cat(scales)


def assert_results(rows: Rows, options: dict[str, Any], *results: Results) -> None:
    """Holds ``got`` against ``eager`` and ``exact``, in this order."""
    got, _, exact = results
    assert torch.equal(got.value.kept, exact.value.kept)
    for field in ("loss", "entropy", "weight"):
        assert_no_worse_than_eager(*(getattr(r.value, field).detach() for r in results))
    scale = gradient_scale(rows, exact.value, options)
    assert_no_worse_than_eager(*(beside(r.grad) for r in results), scale=scale)


def beside(grads: list[Tensor]) -> Tensor:
    """Returns the rows of all tasks as one tensor, padded with zeros."""
    most = max(g.shape[1] for g in grads)
    return torch.cat([torch.nn.functional.pad(g, (0, most - g.shape[1])) for g in grads])


# ---- 1. rounding


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", CASES)
def test_rounds_no_more_than_it_must(
    case: str, options: str, dtype: torch.dtype, device: torch.device
) -> None:
    rows = CASES[case](device).to(dtype)
    got = run(mdft_fast.debiased_entropy_loss, rows, OPTIONS[options])
    assert {g.dtype for g in got.grad} == {dtype}
    eager_rows = rows.to(F32) if dtype == F64 else rows  # the cases' numbers fit float32
    eager = run(reference.debiased_entropy, eager_rows, OPTIONS[options])
    exact = run(reference.debiased_entropy, rows.to(F64), OPTIONS[options])
    assert_results(rows, OPTIONS[options], got, eager, exact)


shapes = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=5)
option_sets = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.0, 1.0, 3.0]),
        "mu": st.sampled_from([0.0, 0.4, 0.9]),
        "entropy_of": st.sampled_from(["teacher", "meta"]),
        "use_entropy": st.booleans(),
        "filter": st.booleans(),
        "reweight": st.sampled_from(["off", "as_written", "normalized"]),
    }
)


@given(shapes=shapes, options=option_sets, seed=st.integers(0, 99))
def test_agrees_with_the_reference_in_any_shape(
    shapes: list[tuple[int, int]], options: dict[str, Any], seed: int, device: torch.device
) -> None:
    rows = make_rows(shapes, device, F64, seed=seed)
    got = run(mdft_fast.debiased_entropy_loss, rows, options)
    wanted = run(reference.debiased_entropy, rows, options)
    # float64 against float64: a few hundred roundings of numbers of size 10.
    torch.testing.assert_close(got.value, wanted.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=name)
def test_cached_teachers_give_the_same(dtype: torch.dtype, device: torch.device) -> None:
    rows = make_rows([(16, 10), (5, 33)], device, dtype)
    p = [t.double().softmax(1).float() for t in rows.teacher]
    h = [reference.entropy(t.double()).float() for t in rows.teacher]

    def cached(logits: list[Tensor], _: Any, **options: Any) -> DebiasedEntropy:
        return mdft_fast.debiased_entropy_loss(logits, p, teacher_entropy=h, **options)

    got, plain = run(cached, rows, {}), run(mdft_fast.debiased_entropy_loss, rows, {})
    exact = run(reference.debiased_entropy, rows.to(F64), {})
    assert torch.equal(got.value.entropy, torch.cat(h))
    assert_results(rows, {}, got, plain, exact)
    wide = [x.double() for x in p], [x.double() for x in h]
    again = reference.debiased_entropy(rows.to(F64).logits, wide[0], teacher_entropy=wide[1])
    torch.testing.assert_close(again.loss, exact.value.loss, rtol=1e-6, atol=0)  # of p in float32
    assert torch.equal(again.entropy, torch.cat(wide[1]))


@pytest.mark.parametrize("teacher", [F16, BF16, F32, F64], ids=name)
def test_teachers_may_have_another_dtype(teacher: torch.dtype, device: torch.device) -> None:
    rows = make_rows([(16, 10), (5, 33)], device)
    low = [t.to(teacher) for t in rows.teacher]
    got = mdft_fast.debiased_entropy_loss(rows.logits, low)
    wanted = mdft_fast.debiased_entropy_loss(rows.logits, [t.float() for t in low])
    assert torch.equal(got.loss, wanted.loss)


@EITHER
@pytest.mark.parametrize("filter", [True, False])
@pytest.mark.parametrize("reweight", ["off", "as_written", "normalized"])
def test_parts_add_up_to_the_whole(
    reweight: Any, filter: bool, f: Any, device: torch.device
) -> None:
    rows = make_rows([(16, 5), (0, 3), (9, 10), (7, 4)], device, F64)
    rows.teacher[3].zero_()  # none is kept by the filter
    switches = {"reweight": reweight, "filter": filter, "mu": 0.6}
    whole = run(f, rows, switches)
    entropies = whole.value.entropy.split([len(z) for z in rows.logits])
    divisors = [
        reference.loss_divisor(h, z.shape[1], **switches)
        for h, z in zip(entropies, rows.logits, strict=True)
    ]
    switches["divide_by"] = torch.stack(divisors)
    parts = [
        run(f, Rows(*([x[some] for x in tensors] for tensors in rows)), switches)
        for some in (slice(0, 5), slice(5, 6), slice(6, 16))
    ]
    total = sum(part.value.loss for part in parts)
    torch.testing.assert_close(total, whole.value.loss, rtol=1e-13, atol=1e-14)
    for k, grad in enumerate(whole.grad):
        joined = torch.cat([part.grad[k] for part in parts])
        torch.testing.assert_close(joined, grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS)
def test_filter_and_weight_are_the_reference_s(options: str, device: torch.device) -> None:
    rows = make_rows([(16, 10), (5, 33)], device, F64)
    rows.teacher[0][3] = math.nan
    rows.logits[1][2] = math.nan
    value = run(mdft_fast.debiased_entropy_loss, rows, OPTIONS[options]).value
    names = {"mu": 0.4, "filter": True, "reweight": "as_written"}
    switches: Any = {n: OPTIONS[options].get(n, default) for n, default in names.items()}
    if "divide_by" in OPTIONS[options]:
        switches["reweight"] = "as_written"
    sizes = [len(z) for z in rows.logits]
    parts = [value.entropy, value.kept, value.weight]
    for z, h, kept, weight in zip(rows.logits, *(x.split(sizes) for x in parts), strict=True):
        wanted = reference.filter_and_weigh(h, z.shape[1], **switches)
        assert torch.equal(kept, wanted[0])
        torch.testing.assert_close(weight, wanted[1], rtol=1e-14, atol=0, equal_nan=True)


# ---- 2. gradients


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(options: str, device: torch.device) -> None:
    rows = make_rows([(4, 3), (2, 5), (1, 9)], device, F64, scale=1.5, seed=5)
    switches = chosen(OPTIONS[options], rows)
    if switches.get("entropy_of") == "meta":  # the weight is held constant; differences move it
        switches = {**switches, "reweight": "off"}
    logits = [z.requires_grad_() for z in rows.logits]
    assert mdft_fast.debiased_entropy_loss(logits, rows.teacher, **switches).kept.any()
    assert torch.autograd.gradcheck(
        lambda *z: mdft_fast.debiased_entropy_loss(z, rows.teacher, **switches).loss, logits
    )


def test_gradients_are_the_formula(device: torch.device) -> None:
    # dH/dz_j = -q_j (log q_j + H); dCE/dz = q - p
    rows = make_rows([(6, 7)], device, F64)
    options = {"filter": False, "reweight": "off", "alpha": 2.0}
    (grad,) = run(mdft_fast.debiased_entropy_loss, rows, options).grad
    log_q, p = rows.logits[0].log_softmax(1), rows.teacher[0].softmax(1)
    q = log_q.exp()
    h = -(q * log_q).sum(1, keepdim=True)
    wanted = (2 * (q - p) - q * (log_q + h)) / 6 * 0.5  # `run` weighs the first task by a half
    torch.testing.assert_close(grad, wanted, rtol=1e-13, atol=1e-15)


def test_each_gradient_is_made_only_when_asked(device: torch.device) -> None:
    rows = make_rows([(4, 3), (2, 5)], device)
    rows.teacher[0].requires_grad_()
    assert not mdft_fast.debiased_entropy_loss(*rows).loss.requires_grad
    rows.logits[1].requires_grad_()
    value = mdft_fast.debiased_entropy_loss(*rows)
    assert [x.requires_grad for x in value] == [True, False, False, False]
    value.loss.sum().backward()
    assert rows.logits[0].grad is None
    assert rows.teacher[0].grad is None
    assert rows.logits[1].grad is not None


def test_torch_func_grad(device: torch.device) -> None:
    rows = make_rows([(4, 3)], device)

    def total(z: Tensor) -> Tensor:
        return mdft_fast.debiased_entropy_loss([z], rows.teacher, filter=False).loss.sum()

    z = rows.logits[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(z), z)
    assert torch.equal(torch.func.grad(total)(rows.logits[0]), wanted)


# ---- 3. registration


def raw(device: torch.device, dtype: torch.dtype = F32) -> list[Any]:
    """Arguments of the operator: 2 tasks, 3 rows, 13 logits."""
    rows = make_rows([(2, 4), (1, 5)], device, dtype)
    z, t = (torch.cat([x.flatten() for x in part]) for part in rows)
    offsets = torch.tensor([0, 4, 8, 13], device=device)
    tasks = torch.tensor([0, 2, 3], device=device)
    return [z, t, None, offsets, tasks, 1.0, 0.4, True, True, 1, False, None]


def raw_backward(device: torch.device) -> list[Any]:
    z, _, _, offsets, tasks, *_ = raw(device)
    return [z, offsets, tasks, torch.ones(2, device=device)]


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=name)
def test_is_registered_right(dtype: torch.dtype, device: torch.device) -> None:
    args = raw(device, dtype)
    torch.library.opcheck(OPS.debiased_entropy.default, tuple(args))
    acc = reference.accumulator(dtype)
    args[2], args[11] = (torch.ones(n, device=device, dtype=acc) for n in (3, 2))
    torch.library.opcheck(OPS.debiased_entropy.default, tuple(args))
    torch.library.opcheck(OPS.debiased_entropy_backward.default, tuple(raw_backward(device)))


def test_compiles_in_one_graph(device: torch.device) -> None:
    rows = make_rows([(4, 3), (2, 5)], device)
    logits = [z.requires_grad_() for z in rows.logits]

    def step(a: Tensor, b: Tensor) -> Tensor:
        return mdft_fast.debiased_entropy_loss([a, b], rows.teacher, filter=False).loss.sum()

    value = torch.compile(step, fullgraph=True, backend="aot_eager")(*logits)
    assert torch.equal(value, step(*logits))
    got = torch.autograd.grad(value, logits)
    assert all(map(torch.equal, got, torch.autograd.grad(step(*logits), logits)))


def test_runs_on_fakes_and_in_inference_mode_before_training(device: torch.device) -> None:
    def step() -> torch.Size:
        z = torch.zeros(11, 13, device=device, requires_grad=True)  # sizes that no test has used
        mdft_fast.debiased_entropy_loss([z], [torch.zeros_like(z)]).loss.sum().backward()
        return z.grad.shape

    with torch.inference_mode():
        z = [torch.zeros(11, 13, device=device)]
        mdft_fast.debiased_entropy_loss(z, z)
    for _ in range(2):
        with FakeTensorMode():
            fake = step()
        assert fake == step()


# ---- 4. errors

# what is wrong -> (position of the argument in the operator, its replacement, the message)
WRONG_ROWS: dict[str, tuple[int, Any, str]] = {
    "logits 2-d": (0, lambda x: x[None], "logits must be [M], got [1, 13]"),
    "row_offsets 2-d": (3, lambda x: x[None], "row_offsets must be [R + 1], got [1, 4]"),
    "row_offsets empty": (3, lambda x: x[:0], "row_offsets must be [R + 1], got [0]"),
    "task_rows 2-d": (4, lambda x: x[None], "task_rows must be [K + 1], got [1, 3]"),
    "task_rows empty": (4, lambda x: x[:0], "task_rows must be [K + 1], got [0]"),
    "logits dtype": (
        0, lambda x: x.int(), "logits must be float32, float64, float16 or bfloat16, got int32",
    ),
    "row_offsets dtype": (3, lambda x: x.int(), "row_offsets must be int64, got int32"),
    "task_rows dtype": (4, lambda x: x.int(), "task_rows must be int64, got int32"),
    "logits strided": (0, lambda x: x.repeat(2)[::2], "logits must be contiguous, got strides"),
    "row_offsets strided": (
        3, lambda x: x.repeat_interleave(2)[::2], "row_offsets must be contiguous, got strides",
    ),
    "task_rows strided": (
        4, lambda x: x.repeat_interleave(2)[::2], "task_rows must be contiguous, got strides",
    ),
}  # fmt: skip
WRONG: dict[str, tuple[int, Any, str]] = {
    **WRONG_ROWS,
    "teacher short": (1, lambda x: x[1:], "teacher must be [13], got [12]"),
    "teacher 2-d": (1, lambda x: x[None], "teacher must be [13], got [1, 13]"),
    "teacher dtype": (
        1, lambda x: x.half(), "teacher must be float32 or the dtype of logits, got float16",
    ),
    "teacher strided": (1, lambda x: x.repeat(2)[::2], "teacher must be contiguous, got strides"),
    "entropy short": (2, torch.ones(2), "teacher_entropy must be [3], got [2]"),
    "entropy dtype": (2, torch.ones(3).half(), "teacher_entropy must be float32, got float16"),
    "entropy strided": (2, torch.ones(6)[::2], "teacher_entropy must be contiguous, got strides"),
    "alpha": (5, -0.25, "alpha must be >= 0, got -0.25"),
    "alpha nan": (5, math.nan, "alpha must be >= 0, got nan"),
    "mu": (6, -1e-9, "mu must be >= 0, got -1e-09"),
    "reweight": (9, 3, "reweight must be 0, 1 or 2, got 3"),
    "divide_by long": (11, torch.ones(3), "divide_by must be [2], got [3]"),
    "divide_by dtype": (11, torch.ones(2).double(), "divide_by must be float32, got float64"),
    "divide_by strided": (11, torch.ones(4)[::2], "divide_by must be contiguous, got strides"),
}  # fmt: skip
WRONG_BACKWARD: dict[str, tuple[int, Any, str]] = {
    **{k: ({0: 0, 3: 1, 4: 2}[i], f, text) for k, (i, f, text) in WRONG_ROWS.items()},
    "grad_loss long": (3, torch.ones(3), "grad_loss must be [2], got [3]"),
    "grad_loss dtype": (3, torch.ones(2).half(), "grad_loss must be float32, got float16"),
    "grad_loss strided": (3, torch.ones(4)[::2], "grad_loss must be contiguous, got strides"),
}


# Read from the data, so by the real operator alone.
WRONG_DATA: dict[str, tuple[int, Any, str]] = {
    "row_offsets end": (3, lambda x: x - 1, "row_offsets must run from 0 to 13, got -1 to 12"),
    "row_offsets fall": (
        3, lambda x: torch.tensor([0, 9, 8, 13]), "row_offsets must not decrease, got 9 before 8",
    ),
    "task_rows end": (4, lambda x: x * 2, "task_rows must run from 0 to 3, got 0 to 6"),
    "task_rows fall": (
        4, lambda x: torch.tensor([0, 3, 2, 3]), "task_rows must not decrease, got 3 before 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_errors_say_what_was_wanted_and_what_came(what: str, device: torch.device) -> None:
    position, by, text = WRONG[what]
    args = changed(raw(device), position, by)
    assert outcome(OPS.debiased_entropy, args, "debiased_entropy: ") == f"debiased_entropy: {text}"


@pytest.mark.parametrize("what", WRONG_BACKWARD)
def test_errors_of_backward(what: str, device: torch.device) -> None:
    op = OPS.debiased_entropy_backward
    position, by, text = WRONG_BACKWARD[what]
    args = changed(raw_backward(device), position, by)
    assert outcome(op, args, "debiased_entropy_backward: ") == f"debiased_entropy_backward: {text}"


@pytest.mark.parametrize("position", [1, 3, 4])
def test_errors_of_another_device(position: int, device: torch.device) -> None:
    args = changed(raw(device), position, lambda x: x.to("meta"))
    what = {1: "teacher", 3: "row_offsets", 4: "task_rows"}[position]
    text = (
        f"debiased_entropy: {what} must be on the device of the other tensors, got another device"
    )
    assert outcome(OPS.debiased_entropy, args, "debiased_entropy: ") == text


@pytest.mark.parametrize("what", WRONG_DATA)
def test_errors_of_data(what: str) -> None:
    position, by, text = WRONG_DATA[what]
    cpu = torch.device("cpu")
    args = changed(raw(cpu), position, by)
    assert outcome(OPS.debiased_entropy, args, "debiased_entropy: ") == f"debiased_entropy: {text}"
    grad_loss = torch.ones(len(args[4]) - 1)
    args = [args[0], args[3], args[4], grad_loss]
    assert outcome(OPS.debiased_entropy_backward, args, "debiased_entropy: ").endswith(text)


Z = [torch.zeros(2, 3), torch.zeros(4, 5)]
WRONG_LISTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "none": (([], []), {}, "lists of one [B_k, C_k] a task, got 0 and 0"),
    "lengths": ((Z, Z[:1]), {}, "lists of one [B_k, C_k] a task, got 2 and 1"),
    "shapes": ((Z, Z[::-1]), {}, "of task 0 must be [B, C], got [2, 3] and [4, 5]"),
    "1-d": (([Z[0][0]], [Z[0][0]]), {}, "of task 0 must be [B, C], got [3] and [3]"),
    "dtypes": (([Z[0].half(), Z[1]], Z), {}, "must have one dtype, got ['float16', 'float32']"),
    "entropy": ((Z, Z), {"teacher_entropy": [torch.ones(2)] * 2}, "[[2], [4]], got [[2], [2]]"),
    "reweight": ((Z, Z), {"reweight": "on"}, "got 'on' and 'teacher'"),
    "entropy_of": ((Z, Z), {"entropy_of": "me"}, "got 'as_written' and 'me'"),
}


@pytest.mark.parametrize("what", WRONG_LISTS)
def test_errors_of_the_lists(what: str) -> None:
    args, options, text = WRONG_LISTS[what]
    with pytest.raises(ValueError, match="debiased_entropy: ") as error:
        mdft_fast.debiased_entropy_loss(*args, **options)
    assert str(error.value).endswith(text)


# ---- 5. refusals


def test_refuses_a_second_derivative(device: torch.device) -> None:
    rows = make_rows([(4, 3)], device)
    z = rows.logits[0].requires_grad_()
    loss = mdft_fast.debiased_entropy_loss([z], rows.teacher, filter=False).loss.sum()
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    # The sum also has a path that is differentiable twice: a missing term would go unnoticed.
    penalty = slope.square().sum() + z.sum()
    with pytest.raises(RuntimeError, match="debiased_entropy: only the first derivative"):
        torch.autograd.grad(penalty, z, retain_graph=True)
    with pytest.raises(RuntimeError, match="debiased_entropy: only the first derivative"):
        penalty.backward()


@pytest.mark.parametrize("name", ["alpha", "mu"])
def test_refuses_options_that_ask_for_a_gradient(name: str, device: torch.device) -> None:
    rows, option = make_rows([(4, 3)], device), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} is data; pass {name}.detach"):
        mdft_fast.debiased_entropy_loss(*rows, **{name: option})
    value = mdft_fast.debiased_entropy_loss(*rows, **{name: option.detach()})
    assert torch.equal(value.loss, mdft_fast.debiased_entropy_loss(*rows, **{name: 0.5}).loss)


@pytest.mark.parametrize("options", [{}, {"dynamic": True}])
def test_one_graph_serves_every_batch_size(options: Any, device: torch.device) -> None:
    def step(z: list[Tensor], t: list[Tensor]) -> Tensor:
        return mdft_fast.debiased_entropy_loss(z, t, reweight="normalized").loss.sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", **options)
    for sizes in ([(16, 10), (3, 4)], [(9, 10), (5, 4)], [(2, 10), (7, 4)]):
        rows = make_rows(sizes, device)
        z = [x.requires_grad_() for x in rows.logits]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of caches that are traced
            got = torch.autograd.grad(compiled(z, rows.teacher), z)
        for one, other in zip(got, torch.autograd.grad(step(z, rows.teacher), z), strict=True):
            torch.testing.assert_close(one, other)


def test_refuses_a_divisor_that_requires_grad(device: torch.device) -> None:
    rows, divisor = make_rows([(4, 3)], device), torch.ones(1, device=device, requires_grad=True)
    with pytest.raises(ValueError, match="divide_by is data"):
        mdft_fast.debiased_entropy_loss(*rows, divide_by=divisor)


def test_refuses_to_differentiate_entropy_and_weight(device: torch.device) -> None:
    rows = make_rows([(4, 3)], device)
    value = mdft_fast.debiased_entropy_loss(
        [rows.logits[0].requires_grad_()], rows.teacher, entropy_of="meta"
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        value.entropy.sum().backward()


# ---- 6. bits


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads_or_repeats(device: torch.device) -> None:
    rows = make_rows([(200, 242), (100, 1000), (50, 7)], device)  # many shares of work
    assert_bits_hold(lambda: run(mdft_fast.debiased_entropy_loss, rows, {}).all())


def test_bits_do_not_depend_on_strides_or_neighbors(device: torch.device) -> None:
    rows = make_rows([(6, 10), (5, 33)], device)
    both = run(mdft_fast.debiased_entropy_loss, rows, {})
    strided = Rows(*([x.mT.contiguous().mT for x in part] for part in rows))
    again = run(mdft_fast.debiased_entropy_loss, strided, {})
    assert all(map(torch.equal, again.all(), both.all()))
    alone = run(mdft_fast.debiased_entropy_loss, Rows(rows.logits[:1], rows.teacher[:1]), {})
    assert torch.equal(alone.value.loss, both.value.loss[:1])
    assert torch.equal(alone.grad[0], both.grad[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("reweight", ["off", "as_written"])
def test_bits_are_those_of_the_mean_where_the_divisor_is_the_number_of_kept_rows(
    reweight: Any, dtype: torch.dtype, device: torch.device
) -> None:
    rows = make_rows([(16, 10), (50, 33), (3, 7)], device, dtype)
    plain = run(mdft_fast.debiased_entropy_loss, rows, {"reweight": reweight})
    counts = [part.sum() for part in plain.value.kept.split([16, 50, 3])]
    divide_by = torch.stack(counts).to(reference.accumulator(dtype))
    again = run(
        mdft_fast.debiased_entropy_loss, rows, {"reweight": reweight, "divide_by": divide_by}
    )
    assert all(map(torch.equal, again.all(), plain.all()))


# ---- 7. degenerate


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("bad", [0.0, math.nan, INF, -INF])
@pytest.mark.parametrize("divide_by", [None, (0.0, 1.0)], ids=["mean", "divided by 0"])
@EITHER
def test_degenerate_nothing_passes_the_filter(
    f: Any, divide_by: Any, bad: float, dtype: torch.dtype, device: torch.device
) -> None:
    rows = make_rows([(4, 3), (2, 5)], device, dtype)
    rows.teacher[0].zero_()  # H(p) = log C: no row of the first task is kept
    rows.teacher[1][:, 0] = 50  # H(p) = 0: all rows of the second are
    rows.logits[0].fill_(bad)
    value, grad = run(f, rows, {"divide_by": divide_by})
    assert value.kept.tolist() == [False] * 4 + [True] * 2
    assert value.loss[0] == 0
    assert not value.weight[:4].any()
    assert not grad[0].any()
    assert grad[1].isfinite().all()
    assert grad[1].any()


READERS_OF_ENTROPY: dict[str, dict[str, Any]] = {
    "paper": {},
    "weight off": {"reweight": "off"},
    "normalized": {"reweight": "normalized"},
    "no cross-entropy": {"alpha": 0.0},
    "no filter": {"filter": False, "alpha": 0.0},
    "meta": {"entropy_of": "meta"},
    "meta, weight off": {"entropy_of": "meta", "reweight": "off", "use_entropy": False},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("options", READERS_OF_ENTROPY)
@EITHER
def test_degenerate_a_nan_entropy_is_not_a_removed_row(
    f: Any, options: str, bad: float, dtype: torch.dtype, device: torch.device
) -> None:
    switches = READERS_OF_ENTROPY[options]
    rows = make_rows([(4, 3), (2, 5)], device, dtype)
    decides, other = rows if switches.get("entropy_of") == "meta" else (rows.teacher, rows.logits)
    decides[0].zero_()  # H = log C: removed, where anything is
    decides[0][1] = bad  # an entropy that is NaN
    decides[1].zero_()
    decides[1][:, 0] = 50  # H = 0: kept
    filtered = switches.get("filter", True)
    if filtered:
        other[0][2] = bad  # a removed row holds anything
    value, grad = run(f, rows, switches)
    assert value.entropy.isnan().tolist() == [False, True] + [False] * 4
    assert value.kept.tolist() == [not filtered, True, *[not filtered] * 2, True, True]
    assert value.weight.isnan().tolist() == [False, True] + [False] * 4
    assert value.loss.isnan().tolist() == [True, False]
    assert grad[0][1].isnan().all()
    assert grad[1].isfinite().all()
    if filtered:
        assert not value.weight[[0, 2, 3]].any()
        assert not grad[0][[0, 2, 3]].any()


@EITHER
def test_degenerate_a_cached_entropy_that_is_nan(f: Any, device: torch.device) -> None:
    rows = make_rows([(4, 3)], device)
    p = [rows.teacher[0].softmax(1)]
    h = [torch.full((4,), math.nan, device=device)]
    assert f(rows.logits, p, teacher_entropy=h).loss.isnan().all()
    unread = f(rows.logits, p, teacher_entropy=h, filter=False, reweight="off")
    assert unread.loss.isfinite().all()
    assert unread.weight.tolist() == [1] * 4


def test_degenerate_infinite_factors_leave_removed_rows_at_zero(device: torch.device) -> None:
    rows = make_rows([(4, 3), (2, 5)], device)
    rows.teacher[0].zero_()
    z = [x.requires_grad_() for x in rows.logits]
    loss = mdft_fast.debiased_entropy_loss(z, rows.teacher).loss
    (loss * torch.tensor([INF, 1.0], device=device)).sum().backward()
    assert not z[0].grad.any()


@pytest.mark.parametrize("options", [{"filter": False}, {"mu": 1.1}], ids=["off", "mu above 1"])
def test_degenerate_all_are_kept(options: dict[str, Any], device: torch.device) -> None:
    rows = make_rows([(4, 3), (2, 5)], device, F64)
    value = mdft_fast.debiased_entropy_loss(*rows, reweight="off", **options)
    assert value.kept.all()
    for loss, z, t in zip(value.loss, *rows, strict=True):
        both = reference.cross_entropy(t.softmax(1), z) + reference.entropy(z)
        torch.testing.assert_close(loss, both.mean())


def test_degenerate_mu_zero_removes_all(device: torch.device) -> None:
    value = mdft_fast.debiased_entropy_loss(*make_rows([(4, 3)], device), mu=0.0)
    assert not value.kept.any()
    assert value.loss.tolist() == [0]


def test_degenerate_one_class_has_nothing_to_learn(device: torch.device) -> None:
    value, grad = run(
        mdft_fast.debiased_entropy_loss, make_rows([(4, 1)], device), {"filter": False}
    )
    assert value.loss.tolist() == [0]
    assert value.entropy.tolist() == [0] * 4
    assert value.weight.tolist() == [1] * 4
    assert not grad[0].any()


def test_degenerate_a_task_without_rows_adds_nothing(device: torch.device) -> None:
    rows = make_rows([(3, 4), (0, 7), (2, 5)], device)
    value, grad = run(mdft_fast.debiased_entropy_loss, rows, {"filter": False})
    assert value.loss[1] == 0
    assert (value.loss[[0, 2]] > 0).all()
    assert grad[1].shape == (0, 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_degenerate_agreeing_one_hots_have_no_loss(
    dtype: torch.dtype, device: torch.device
) -> None:
    z = torch.eye(6, device=device, dtype=dtype) * 1e4
    value, (grad,) = run(mdft_fast.debiased_entropy_loss, Rows([z], [z]), {})
    assert value.loss.tolist() == [0]
    assert value.kept.all()
    assert not grad.any()


def test_degenerate_a_class_that_only_the_teacher_allows_costs_infinity(
    device: torch.device,
) -> None:
    z = torch.tensor([[0.0, -INF, 0.0]], device=device)
    t = torch.zeros(1, 3, device=device)
    value, (grad,) = run(mdft_fast.debiased_entropy_loss, Rows([z], [t]), {"filter": False})
    assert value.loss.item() == INF
    assert grad.isfinite().all()  # q - p points away from it
    assert grad[0, 1] < 0

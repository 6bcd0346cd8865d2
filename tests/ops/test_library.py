# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs where: what falls back, what says so, and the portable loops."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mdft_fast
from mdft_fast.arena import TILE, Layout
from mdft_fast.ops import _library
from tests.ops.inputs import F64, make_arena, make_grads, make_rows, outcome

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
LAYOUT = Layout.of({"a": (3,), "b": (2, 700)})
LONE = Layout.of({"a": (TILE,)})


def all_results() -> list[Tensor]:
    """Every operator once, with its gradients."""
    base, deltas, coefficients = make_arena(3, LAYOUT, CPU, learns=True)
    parts = mdft_fast.merge_tensors(base, deltas, coefficients, LAYOUT, out=torch.empty_like(base))
    sum(p.square().sum() for p in parts).backward()
    dots = mdft_fast.merge_dots(make_grads(LAYOUT, CPU), deltas, LAYOUT)
    rows = make_rows([(4, 3), (2, 5)], CPU)
    z = [x.requires_grad_() for x in rows.logits]
    value = mdft_fast.debiased_entropy_loss(z, rows.teacher)
    value.loss.sum().backward()
    found = [*parts, base.grad, coefficients.grad, dots, *value, *(x.grad for x in z)]
    return [x.detach() for x in found]


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the CPU's kernels away."""
    monkeypatch.setitem(_library._missing, "cpu", "taken away")
    monkeypatch.setattr(_library, "_warned", set())


@pytest.mark.usefixtures("no_kernel")
def test_strict_forbids_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDFT_STRICT", "1")
    arena = make_arena(3, LAYOUT, CPU)
    calls = {
        "merge": lambda: mdft_fast.merge(*arena, LAYOUT),
        "merge_dots": lambda: mdft_fast.merge_dots([None, None], arena.deltas, LAYOUT),
        "debiased_entropy": lambda: mdft_fast.debiased_entropy_loss(*make_rows([(4, 3)], CPU)),
    }
    for op, call in calls.items():
        text = rf"{op}: no native kernel for cpu float32 \(taken away\), and MDFT_STRICT=1 forbids"
        with pytest.raises(mdft_fast.MdftError, match=text):
            call()


def test_the_reference_stands_in_with_a_warning(
    no_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDFT_STRICT", "0")
    with pytest.warns(mdft_fast.MdftFallbackWarning) as seen:
        plain = all_results()
    texts = sorted(str(w.message) for w in seen)
    assert texts == [  # once for each operator and dtype
        f"{op}: no native kernel for cpu float32 (taken away); running the plain-torch reference"
        for op in ("debiased_entropy", "merge", "merge_dots")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_results()
    fell_back = "debiased_entropy cpu float32, merge cpu float32, merge_dots cpu float32"
    assert mdft_fast.kernels()["fell_back"] == fell_back
    assert mdft_fast.kernels()["cpu"] == "reference (taken away)"
    monkeypatch.undo()
    for got, wanted in zip(all_results(), plain, strict=True):
        # Two float32 sums of up to 1,400 products: apart by at most 2 * 1400 * 2^-24 = 1.7e-4 of
        # what the terms add up to.
        torch.testing.assert_close(got, wanted, rtol=1.7e-4, atol=1e-4)


@pytest.fixture
def reference_runs(no_kernel: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the plain-torch reference run in the kernels' place."""
    monkeypatch.setenv("MDFT_STRICT", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mdft_fast.MdftFallbackWarning)
        yield


@pytest.mark.usefixtures("reference_runs")
def test_the_reference_refuses_what_users_get_wrong() -> None:
    base, deltas, lam = make_arena(3, LAYOUT, CPU)
    grads = make_grads(LAYOUT, CPU)
    rows = make_rows([(4, 3), (2, 5)], CPU)
    loss, merge, dots = mdft_fast.debiased_entropy_loss, mdft_fast.merge, mdft_fast.merge_dots
    ints = [z.long() for z in rows.logits]
    h = [z.sum(1).to("meta") for z in rows.logits]
    floating = "must be float32, float64, float16 or bfloat16"
    narrow = "must be float32, float16 or bfloat16, got"
    codes = "must be float32, float16, bfloat16, int8 or uint8, got"
    cases: dict[str, Any] = {
        f"merge: deltas {codes} float64": lambda: merge(base, deltas.to(F64), lam, LAYOUT),
        f"merge: deltas {codes} int64": lambda: merge(base, deltas.long(), lam, LAYOUT),
        f"merge_dots: a gradient {narrow} float64": lambda: dots(
            [g.to(F64) for g in grads], deltas, LAYOUT
        ),
        "merge_dots: gradient 0 must have at most 1000 elements, got [1024]": lambda: dots(
            [torch.ones(TILE)], deltas[:, :1000].contiguous(), LONE
        ),
        "merge: out must not overlap deltas, got memory of it": lambda: merge(
            base, deltas, lam, LAYOUT, out=deltas[0]
        ),
        "merge: out must be [3072], got [3071]": lambda: merge(
            base, deltas, lam, LAYOUT, out=torch.empty(3071)
        ),
        f"merge: out {narrow} int64": lambda: merge(
            base, deltas, lam, LAYOUT, out_dtype=torch.int64
        ),
        f"merge: base {floating}, got int64": lambda: merge(base.long(), deltas, lam, LAYOUT),
        "merge: base must be [N], got [1, 3072]": lambda: merge(base[None], deltas, lam, LAYOUT),
        "merge: deltas must be [K, 3072], got [3, 3071]": lambda: merge(
            base, deltas[:, 1:], lam, LAYOUT
        ),
        "merge: coefficients must be [3, L], got [2, 2]": lambda: merge(
            base, deltas, lam[1:], LAYOUT
        ),
        "merge: coefficients must be float32, got float16": lambda: merge(
            base, deltas, lam.half(), LAYOUT
        ),
        "merge: deltas must be float64 like the rest, got float32": lambda: merge(
            base.to(F64), deltas, lam.to(F64), LAYOUT
        ),
        "merge: coefficients must be on the device of the other tensors, got another device": (
            lambda: merge(base, deltas, lam.to("meta"), LAYOUT)
        ),
        "merge_dots: all gradients must be float32, got float16": lambda: dots(
            [grads[0], grads[1].half()], deltas, LAYOUT
        ),
        "merge_dots: deltas must be [K, 3072], got [3072]": lambda: dots(grads, deltas[0], LAYOUT),
        "debiased_entropy: divide_by must be [2], got [3]": lambda: loss(
            *rows, divide_by=torch.ones(3)
        ),
        "debiased_entropy: divide_by must be float32, got float64": lambda: loss(
            *rows, divide_by=torch.ones(2, dtype=F64)
        ),
        "debiased_entropy: alpha must be >= 0, got -1": lambda: loss(*rows, alpha=-1),
        "debiased_entropy: mu must be >= 0, got -0.5": lambda: loss(*rows, mu=-0.5),
        f"debiased_entropy: logits {floating}, got int64": lambda: loss(ints, rows.teacher),
        "debiased_entropy: teacher_entropy must be on the device of the other tensors, got "
        "another device": lambda: loss(*rows, teacher_entropy=h),
    }
    for text, call in cases.items():
        assert outcome(lambda call: call(), [call], text.split(":")[0] + ":") == text


@pytest.mark.usefixtures("reference_runs")
def test_the_reference_reads_cached_entropies() -> None:
    rows = make_rows([(4, 3), (2, 5)], CPU)
    p = [t.softmax(1) for t in rows.teacher]
    h = [torch.full((len(t),), 0.01 * (k + 1)) for k, t in enumerate(p)]
    value = mdft_fast.debiased_entropy_loss(rows.logits, p, teacher_entropy=h)
    assert torch.equal(value.entropy, torch.cat(h))  # not p's own
    assert value.kept.all()
    wide = mdft_fast.debiased_entropy_loss(
        rows.logits, [x.to(F64) for x in p], teacher_entropy=[x.to(F64) for x in h]
    )
    assert torch.equal(wide.loss, value.loss)  # float32, as the kernel's


def test_kernels_names_what_runs() -> None:
    found = mdft_fast.kernels()
    assert found["cpu"] in ("avx2", "portable")
    assert found["cuda"].startswith(("cuda", "reference ("))
    assert "fell_back" not in found


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path.cwd(),
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_works_where_the_library_does_not_load() -> None:
    code = """
import sys, torch
def refuse(path): raise OSError("wrong torch")
torch.ops.load_library = refuse
import mdft_fast
sys.path.append(sys.argv[1] if len(sys.argv) > 1 else ".")
import tests.ops.test_library as t
assert not hasattr(torch.ops.mdft_fast, "merge")
assert all(x.isfinite().all() for x in t.all_results())
print(mdft_fast.kernels()["cpu"])
"""
    found = run_python(code, MDFT_STRICT="0", PYTHONPATH=os.pathsep.join([*sys.path, str(ROOT)]))
    assert found.strip() == "reference (libmdft_ops.so does not load: wrong torch)"


def test_portable_loops() -> None:
    """The choice is made once a process: so the kernels' own tests run again in another one."""
    chosen = "rounds_no_more or widening or narrowing or past_the_cache or degenerate"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
            "-k", f"({chosen}) and not real_model and not reference", "--hypothesis-profile=quick",
            *(str(p) for p in sorted(Path(__file__).parent.glob("test_*.py"))),
            "--deselect", f"{__file__}::test_portable_loops",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "MDFT_CPU": "portable"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout

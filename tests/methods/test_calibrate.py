# SPDX-License-Identifier: Apache-2.0
"""Calibrate: its equations, its limits, and pools that leave it little to go by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdft_fast import MdftError, Pool
from mdft_fast.methods import Calibrate, SamplesToLearn, apply
from mdft_fast.model import split
from tests.methods.made_backbones import (
    Case,
    make_backbone_case,
    make_case,
    plain_cnn,
    seeded,
)

SMALL = ("timm class token", "ResNet")


class Affine(nn.Module):
    """A block of one matrix, and nothing else that is merged."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def rows(n: int, seed: int) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def affine_case(K: int = 3, n: int = 20, **options: object) -> Case:
    return make_case(seeded(Affine), K=K, n=n, draw=rows, **options)  # type: ignore[arg-type]


def models_of(case: Case) -> list[Tensor]:
    """Each task's matrix with its bias as the last column, float64."""
    layers = [case.model(k).get_submodule("blocks.0") for k in range(case.pool.K)]
    return [torch.cat([m.weight, m.bias[:, None]], 1).detach().double() for m in layers]


def sensitivity(case: Case, k: int, matrix: Tensor, seed: int) -> Tensor:
    """The Fisher matrix by its definition, with the same numbers drawn."""
    head = case.tasks[k].head
    x = case.tasks[k].samples.tensors.double()
    y = F.linear(x, matrix[:, :-1], matrix[:, -1]).requires_grad_()
    logits = head.scale * F.normalize(y, dim=1) @ head.weight.double().T
    p = logits.detach().softmax(1)
    v = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).double()
    factor = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]  # C
    (g,) = torch.autograd.grad(logits, y, (factor @ v[:, :, None])[:, :, 0])
    fisher = g.T @ g
    return fisher / fisher.diagonal().mean()


@pytest.mark.parametrize("fisher", [0.0, 0.9])
def test_the_normal_equations(fisher: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One matrix: everything in one dense system in float64, of Kronecker products."""
    case, method = affine_case(), Calibrate(fisher=fisher, rho=0.05, epsilon=0.01)
    base = torch.cat([_base(case, "blocks.0.weight"), _base(case, "blocks.0.bias")[:, None]], 1)
    base, eye = base.double(), torch.eye(4, dtype=torch.float64)
    system, right, total, reference = 0.0, 0.0, 0.0, [0.0, 0.0]
    for k, matrix in enumerate(models_of(case)):
        x = case.tasks[k].samples.tensors.double()
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        gram = x.T @ x / (x.T @ x).trace()
        delta = matrix - base
        free = delta.T @ delta / (delta.T @ delta).trace()
        measured = sensitivity(case, k, matrix, method.seed)
        metric = (1 - fisher) * eye + fisher * measured
        both = gram + method.rho * free
        # vec over columns: (A kron M) vec(X) = vec(M X A).
        system = system + torch.kron(both, metric)
        right = right + (metric @ delta @ both).T.reshape(-1)
        total = total + both
        reference = [reference[0] + gram + free, reference[1] + delta @ (gram + free)]
    ridge = method.epsilon * total.diagonal().mean()
    least = 1e-6 * reference[0].diagonal().mean() * torch.eye(6, dtype=torch.float64)
    pull = torch.linalg.solve(reference[0] + least, reference[1].T).T
    system = system + ridge * torch.eye(24, dtype=torch.float64)
    right = right + ridge * pull.T.reshape(-1)
    exact = torch.linalg.solve(system, right).view(6, 4).T
    monkeypatch.setattr("mdft_fast.methods.calibrate._STEPS", 5)  # nearer than the default goes
    made = case.merged(method)
    matrix = torch.cat([made["blocks.0.weight"][0], made["blocks.0.bias"][0][:, None]], 1)
    # bfloat16 gradients, and conjugate gradients that stop: both of 1e-3.
    bound = 5e-3 if fisher else 2e-5
    assert float((matrix - exact).norm() / exact.norm()) < bound


def _base(case: Case, name: str) -> Tensor:
    return dict(zip(case.names, case.pool.layout.views(case.pool.base), strict=True))[name]


@pytest.mark.parametrize("name", SMALL)
def test_one_task_gives_its_model_back(name: str) -> None:
    """Every target can be met then, but for the ridge and what gets the mean: here nothing."""
    case = make_backbone_case(name, K=1, n=40)
    made = case.made(case.merged(Calibrate(batch=16)))
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mine, plain = made(images), case.model(0)(images)
    assert float((mine - plain).norm() / plain.norm()) < 2e-3
    weights = dict(made.named_parameters())
    for weight, own in zip(weights.values(), case.model(0).parameters(), strict=True):
        assert float((weight - own).detach().norm() / own.detach().norm()) < 2e-2


@pytest.mark.parametrize("name", SMALL)
def test_the_tasks_order_matters_no_more_than_rounding(name: str) -> None:
    case = make_backbone_case(name, K=3)
    order = [2, 0, 1]
    tasks = tuple(case.pool.tasks[k] for k in order)
    names = tuple(task.name for task in tasks)
    pool = dataclasses.replace(case.pool, tasks=tasks, vector_names=names)
    vectors = dataclasses.replace(case.pool.vectors, codes=case.pool.vectors.codes[order])
    moved = dataclasses.replace(case, pool=dataclasses.replace(pool, vectors=vectors))
    for (tensor, mine), other in zip(
        case.merged(Calibrate()).items(), moved.merged(Calibrate()).values(), strict=True
    ):
        assert float((mine - other).norm()) <= 2e-3 * float(mine.norm()), tensor


@pytest.mark.parametrize("name", SMALL)
def test_equal_bits_again(name: str) -> None:
    case = make_backbone_case(name, K=2, n=12)
    one, again = (case.merged(Calibrate(batch=5)) for _ in range(2))
    for tensor in one:
        assert torch.equal(one[tensor], again[tensor])


def test_threads_change_no_more_than_rounding() -> None:
    """Not bits: matrix products of many threads may sum in another order."""
    case, threads = affine_case(), torch.get_num_threads()
    one = case.merged(Calibrate())
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        other = case.merged(Calibrate())
    finally:
        torch.set_num_threads(threads)
    for tensor in one:
        torch.testing.assert_close(one[tensor], other[tensor], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*SMALL, "odd", "numbered CNN", "open_clip", "torch, norm first"])
def test_keeping_outputs_changes_nothing(name: str) -> None:
    """Bits: what is kept is what would be computed again."""
    case = make_backbone_case(name)
    kept, again = case.merged(Calibrate(batch=4)), case.merged(Calibrate(batch=4, keep=False))
    for tensor in kept:
        assert torch.equal(kept[tensor], again[tensor]), tensor


def with_vectors(case: Case, change: str) -> Case:
    codes = case.pool.vectors.codes.clone()
    if change == "identical":
        codes[1:] = codes[0]
    elif change == "opposite":
        codes[1] = -codes[0]
    elif change == "zero":
        codes.zero_()
    elif change == "one of zeros":
        codes[0] = 0
    vectors = dataclasses.replace(case.pool.vectors, codes=codes)
    return dataclasses.replace(case, pool=dataclasses.replace(case.pool, vectors=vectors))


@pytest.mark.parametrize("fisher", [0.0, 0.9])
@pytest.mark.parametrize("change", ["identical", "opposite", "zero", "one of zeros"])
@pytest.mark.parametrize("name", ["timm class token", "numbered CNN"])
def test_degenerate_vectors(name: str, change: str, fisher: float) -> None:
    case = with_vectors(make_backbone_case(name, n=30), change)
    made = case.merged(Calibrate(fisher=fisher))
    assert all(vector.isfinite().all() for vector in made.values())
    if change == "zero":
        assert all(float(vector.abs().max()) < 1e-3 for vector in made.values())
    if change == "identical":
        images = case.tasks[0].samples.tensors
        with torch.no_grad():
            mine, plain = case.made(made)(images), case.model(0)(images)
        assert float((mine - plain).norm() / plain.norm()) < 5e-3


@pytest.mark.parametrize("fisher", [0.0, 0.9])
@pytest.mark.parametrize(("K", "n"), [(1, 1), (2, 1), (7, 2)])
def test_fewer_rows_than_inputs_and_more_tasks_than_rows(K: int, n: int, fisher: float) -> None:
    for case in (affine_case(K, n), make_backbone_case("timm class token", K=K, n=n)):
        made = case.merged(Calibrate(fisher=fisher))
        assert all(vector.isfinite().all() for vector in made.values())


@pytest.mark.parametrize("fisher", [0.0, 0.9])
def test_inputs_of_zeros(fisher: float) -> None:
    case = affine_case()
    for task in case.tasks:
        task.samples.tensors.zero_()
    case.tasks[0].samples.tensors[0] = 1e-30
    assert all(v.isfinite().all() for v in case.merged(Calibrate(fisher=fisher)).values())

    class Dead(nn.Module):
        """Nothing ever reaches its second layer."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x) - 100)) + x[:, :3]

    case = make_case(seeded(Dead), n=9, draw=rows)
    assert all(v.isfinite().all() for v in case.merged(Calibrate(fisher=fisher)).values())


@pytest.mark.parametrize("fisher", [0.0, 0.9])
def test_what_is_not_finite_is_refused_in_words(fisher: float) -> None:
    case = make_backbone_case("timm class token")
    case.tasks[1].samples.tensors[2, 0, 3, 3] = float("nan")
    with pytest.raises(MdftError, match=r"must be finite, got NaN or infinity"):
        case.merged(Calibrate(fisher=fisher))


def test_a_pool_without_heads_needs_no_metric() -> None:
    case = affine_case(heads=False)
    with pytest.raises(MdftError, match="task 'task0' must have a head where fisher is above 0"):
        case.merged(Calibrate())
    case.merged(Calibrate(fisher=0.0))


class Shift(nn.Module):
    """A block without a matrix, or whose matrix runs twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(5))
        self.matrix = nn.Linear(5, 5) if twice else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(torch.tanh(self.matrix(x))) + self.shift


class Row(nn.Module):
    """Blocks in a row, of which the model's output reads all, or all but the last."""

    def __init__(self, blocks: Sequence[nn.Module], last: int = -1) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList(blocks), last

    def forward(self, x: Tensor) -> Tensor:
        streams = [x]
        for block in self.blocks:
            streams.append(block(streams[-1]))
        return streams[self.last]


ROWS = {
    "no matrix in a block": lambda: Row([nn.Linear(5, 5), Shift(False), nn.Linear(5, 5)]),
    "no matrix that can be walked": lambda: Row([Shift(True), Shift(True)]),
    "a last block that is not read": lambda: Row([nn.Linear(5, 5), nn.Linear(5, 5)], last=-2),
}


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_blocks_without_anything_to_measure(make: Callable[[], nn.Module]) -> None:
    case = make_case(seeded(make), K=1, n=20, draw=rows)
    own = {name: case.pool.layout.views(case.pool.vectors.codes[0])[i]
           for i, name in enumerate(case.names)}  # fmt: skip
    made = case.merged(Calibrate())
    for name, delta in own.items():
        torch.testing.assert_close(made[name][0], delta, atol=1e-3, rtol=1e-2)


def test_held_out_samples_are_never_looked_at() -> None:
    case = make_backbone_case("timm class token", n=20)
    learn = [SamplesToLearn(task, 0.25, 3) for task in case.tasks]
    made = apply(case.pool, [Calibrate()], backbone=case.backbone, tasks=learn)
    for task in case.tasks:
        _, held = split(20, 0.25, 3, task.name)
        task.samples.tensors[held] = float("nan")
    again = apply(case.pool, [Calibrate()], backbone=case.backbone, tasks=learn)
    assert made.checksum == again.checksum


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_a_narrow_pool(codec: str) -> None:
    exact, case = affine_case(), affine_case(codec=codec)
    for mine, other in zip(
        exact.merged(Calibrate()).values(),
        case.merged(Calibrate(), codec="fp32").values(),
        strict=True,
    ):
        assert float((mine - other).norm() / mine.norm()) < 2e-2
    assert case.merged(Calibrate()).keys() == exact.merged(Calibrate()).keys()


def test_a_bar_hears_of_every_layer_and_task() -> None:
    case = make_backbone_case("odd", K=2)
    heard: list[tuple[int, int]] = []
    case.merged(Calibrate(fisher=0.0), watch=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[0] == (0, heard[0][1])
    assert heard[-1] == (heard[0][1],) * 2
    assert len(heard) > 8


def test_tensors_of_float16_checkpoints() -> None:
    backbone = seeded(plain_cnn)
    case = make_case(backbone)
    halves = {name: tensor.half() for name, tensor in case.backbone.state_dict().items()}
    models = [{name: tensor + 0.01 * k for name, tensor in halves.items()} for k in (1, -2)]
    pool = Pool.from_checkpoints(
        halves, models, case.tasks, backbone=backbone,
        preprocess={"size": 16, "mean": 0.5, "std": 0.5},
    )  # fmt: skip
    made = apply(pool, [Calibrate()], backbone=backbone, tasks=case.tasks)
    assert made.dtypes["first.weight"] == "float16"


def test_streams_that_lie_on_the_host_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and device are one here: this goes through every place that stores and fetches."""
    case = make_backbone_case(SMALL[0])
    plain = case.merged(Calibrate(batch=4))
    monkeypatch.setattr("mdft_fast.methods.calibrate.crowded", lambda walk, **_: True)
    for tensor, made in case.merged(Calibrate(batch=4)).items():
        assert torch.equal(made, plain[tensor]), tensor

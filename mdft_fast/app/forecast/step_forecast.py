# SPDX-License-Identifier: Apache-2.0
"""Forecasts the memory of a step by running it on fake tensors.

Fakes have shapes and lifetimes but no data, so the very code that will run tells what is alive
when, at no cost in memory and in about a second.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mdft_fast.app.forecast.live_bytes import LiveBytes
from mdft_fast.arena import CODECS, Codec, Layout, TaskVectors, empty_vectors
from mdft_fast.checkpoints import as_preprocess, example_input
from mdft_fast.errors import MdftError
from mdft_fast.methods import InputMerge, Start
from mdft_fast.model import (
    DTYPE_OF_PRECISION,
    MODES,
    Granularity,
    MetaModel,
    Mode,
    Precision,
)
from mdft_fast.ops import debiased_entropy_loss
from mdft_fast.pool import Pool, take_inventory

# Of λ outside of a step: itself, the two moments of Adam, its start and its last value, and the one
# that the merged weights hold.
_COPIES = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What a forecast is about.

    Attributes:
        backbone: the module, on the meta device: shapes only.
        classes: number of classes of each task.
        size: height and width of an image.
        blocks: names of the modules that are blocks; None: found.
        vectors: how many there are; None: one a task.
    """

    backbone: nn.Module
    classes: Sequence[int]
    size: tuple[int, int]
    blocks: Sequence[str] | None = None
    vectors: int | None = None

    @property
    def K(self) -> int:
        """``K``: number of vectors: the tasks', and a start's where there is one."""
        return len(self.classes) if self.vectors is None else self.vectors


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The memory of one way to run a step.

    Attributes:
        mode: "resident", "layerwise" or "streamed".
        codec: of the task vectors.
        checkpointing: whether activations of blocks are computed again.
        base: bytes of the pre-trained arena, and ``vectors``: of the task vectors.
        away: whether these two stay in the pool's files, or on a GPU's host: not in ``peak``.
        weights: bytes of merged weights alive at once.
        rest: bytes at the peak that are none of these: gradients, activations, workspace, λ and
            what is kept of it.
        moved: bytes that merge and merge_dots read and write in a step.
    """

    mode: Mode
    codec: Codec
    checkpointing: bool
    base: int
    vectors: int
    away: bool
    weights: int
    rest: int
    moved: int

    @property
    def peak(self) -> int:
        """Bytes in memory at the step's peak."""
        return self.weights + self.rest + (0 if self.away else self.base + self.vectors)


def forecast(
    subject: Subject,
    samples: int,
    *,
    precision: Precision = "fp32",
    passes: int = 1,
    gpu: bool = False,
    mapped: Collection[Codec] = (),
    granularity: Granularity = "tensor",
) -> Iterator[Forecast]:
    """Yields the forecast of every mode and codec, first without, then with checkpointing.

    Args:
        subject: the model.
        samples: images of a forward pass.
        precision: of weights and activations.
        passes: forward passes a step (micro-batches).
        gpu: whether the step runs on a GPU, where "streamed" keeps two blocks of base and task
            vectors on the device.
        mapped: codecs in which base and task vectors are read where they lie in a pool's files
            (CPU).
        granularity: what shares a coefficient: by row, λ and what its optimizer keeps are no
            longer small.

    Raises:
        MdftError: if the backbone does not run on tensors without data.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    backbone = copy.deepcopy(subject.backbone)
    with fakes:
        backbone.to_empty(device="cpu")
    subject = dataclasses.replace(subject, backbone=backbone)
    pool = _fake_pool(subject, fakes)
    base, out = 4 * pool.N, pool.N * DTYPE_OF_PRECISION[precision].itemsize
    for checkpointing, mode in itertools.product((False, True), MODES):
        step = _simulate(subject, pool, fakes, mode, samples, precision, checkpointing, granularity)
        if step is None:
            continue
        peak, elements, coefficients = step
        weights, staged = out * elements // pool.N, gpu and mode == "streamed"
        merges = 1 if mode == "resident" else 2 * passes
        for codec in CODECS:
            with torch.device("meta"):
                vectors = empty_vectors(pool.K, pool.N, codec).bytes
            # Staged: two blocks of base and task vectors beside the block of merged weights.
            buffers = 2 * (base + vectors) * elements // pool.N if staged else 0
            yield Forecast(
                mode, codec, checkpointing, base, vectors,
                away=staged or (codec in mapped and not gpu),
                weights=weights,
                rest=peak - weights + buffers + _COPIES * coefficients,
                moved=merges * (base + vectors + out) + passes * (out + vectors),
            )  # fmt: skip


def forecast_start(subject: Subject, start: Start) -> int | None:
    """Forecasts the bytes that making a start takes beyond base and vectors; None: not known."""
    method = start.method
    if not isinstance(method, InputMerge):
        return None
    pool = _fake_pool(dataclasses.replace(subject, vectors=None), FakeTensorMode())
    return method.memory(pool, subject.backbone, example_input(pool.preprocess))


def _fake_pool(subject: Subject, fakes: FakeTensorMode) -> Pool:
    """Returns a pool without data that fits the backbone."""
    inventory = take_inventory(subject.backbone)
    layout = Layout.of(inventory.merged)
    with fakes:
        return Pool(
            layout=layout,
            base=torch.empty(layout.elements, dtype=torch.float32, device="cpu"),
            vectors=TaskVectors(
                torch.empty(subject.K, layout.elements, dtype=torch.float32, device="cpu")
            ),
            tasks=(),
            heads={},
            buffers={
                name: torch.empty(shape, dtype=torch.float32, device="cpu")
                for name, shape in inventory.kept.items()
            },
            left_out=inventory.left_out,
            ties=inventory.aliases,
            dtypes={},
            backbone_spec={},
            preprocess=as_preprocess({"size": subject.size, "mean": 0.0, "std": 1.0}),
            checksum="",
        )


def _simulate(
    subject: Subject,
    pool: Pool,
    fakes: FakeTensorMode,
    mode: Mode,
    samples: int,
    precision: Precision,
    checkpointing: bool,
    granularity: Granularity,
) -> tuple[int, int, int] | None:
    """Runs one step of stage 1 on fakes.

    Returns:
        Bytes that the step made, at its peak, elements merged at once, and bytes of λ; None where
        the mode needs blocks and there are none.
    """
    try:
        meta = MetaModel(
            subject.backbone, pool, mode=mode, start=0.0, blocks=subject.blocks,
            precision=precision, checkpointing=checkpointing, granularity=granularity,
        )  # fmt: skip
    except MdftError:
        if subject.blocks is None and (mode != "resident" or checkpointing):
            return None
        raise
    try:
        with fakes:
            meta.coefficients = nn.Parameter(
                torch.empty(meta.coefficients.shape, dtype=torch.float32, device="cpu")
            )
            with LiveBytes() as live:
                _step(meta, subject, samples)
    except MdftError:
        raise
    except Exception as error:  # whatever a module does that needs data
        raise MdftError(
            f"plan: the backbone must run on tensors without data, got {type(error).__name__}: "
            f"{error}"
        ) from error
    return live.peak, meta.merged_elements, 4 * meta.coefficients.numel()


@torch.enable_grad()
def _step(meta: MetaModel, subject: Subject, samples: int) -> None:
    images = torch.empty(samples, 3, *subject.size, dtype=torch.float32, device="cpu")
    features = meta.encode(images)
    parts = torch.arange(samples, device="cpu").tensor_split(min(len(subject.classes), samples))
    logits, teachers = [], []
    for rows, count in zip(parts, subject.classes, strict=False):
        head = torch.empty(count, features.shape[1], dtype=torch.float32, device="cpu")
        logits.append(features[: len(rows)] @ head.T)
        teachers.append(torch.empty(len(rows), count, dtype=torch.float32, device="cpu"))
    debiased_entropy_loss(logits, teachers).loss.sum().backward()

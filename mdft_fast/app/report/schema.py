# SPDX-License-Identifier: Apache-2.0
"""``result.json`` and ``metrics.jsonl``: what a run writes down, and what the report reads.

Shapes: K task vectors, L columns of λ. An accuracy is a share from 0 to 1. A method or a task that
is absent from ``accuracy`` was not measured: no labels, or a stage that was not run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from mdft_fast.errors import MdftError

SCHEMA = 1
RESULT = "result.json"
METRICS = "metrics.jsonl"

Method = Literal["pretrained", "individual", "task_arithmetic", "meta", "specialized", "control"]
T = TypeVar("T")


class TaskCounts(TypedDict):
    """One task's samples.

    Attributes:
        name: the task's.
        classes: C.
        unlabelled: samples given.
        learn: of those, the ones that steps draw from.
        holdout: of those, the ones kept apart.
        kept: of ``learn``, those that pass the filter.
        kept_share: ``kept / learn``.
        test: labelled samples; 0 where there are none.
        samples: SHA-256 of the unlabelled images.
        entropy: of the teacher on ``learn``, as a share of log C: a histogram over equal bins of
            [0, 1], the number of samples in each; the last bin holds 1 itself.
    """

    name: str
    classes: int
    unlabelled: int
    learn: int
    holdout: int
    kept: int
    kept_share: float
    test: int
    samples: NotRequired[str]
    entropy: NotRequired[list[int]]


class Filter(TypedDict):
    """The filter of stage 1, equation (4).

    Attributes:
        enabled: whether samples are removed at all.
        mu: samples are kept whose entropy, as a share of log C, is below this.
        entropy_of: whose entropy.
    """

    enabled: bool
    mu: float
    entropy_of: Literal["teacher", "meta"]


class Confusion(TypedDict):
    """How often each class of a task was taken for each, sparse.

    Attributes:
        classes: C names.
        true: class of the label, an index into ``classes``; one a pair of classes that occurs.
        predicted: class that the model says, likewise.
        count: test samples of that pair.
    """

    classes: list[str]
    true: list[int]
    predicted: list[int]
    count: list[int]


class PoolFacts(TypedDict):
    """The pool: its checksum, codec, sizes, and the tensors that are not merged, with why."""

    checksum: str
    codec: str
    parameters: int
    tensors: int
    left_out: dict[str, str]
    methods: NotRequired[list[str]]  # what the task vectors went through
    tasks: list[TaskCounts]


class Coefficients(TypedDict):
    """λ.

    Attributes:
        start: one number, or [K][L].
        construct: [K][L] after stage 1.
        specialize: task -> [K][L] after stage 2.
    """

    start: float | list[list[float]]
    construct: list[list[float]]
    specialize: dict[str, list[list[float]]]


class Interval(TypedDict):
    """A difference of two accuracies and its 95 % bootstrap interval, on a scale of 0 to 1."""

    difference: float
    low: float
    high: float


class SpecializePoint(TypedDict):
    """Where a specialized model stands after a step; step 0 is before the first.

    Attributes:
        step: number of updates so far.
        loss: equation (7); None where it was not measured.
        accuracy: on the target task; None without labels.
        distance: L2 distance of λ to e_k.
        others: mean accuracy on the other tasks; None where not measured.
    """

    step: int
    loss: float | None
    accuracy: float | None
    distance: float
    others: float | None


class Holdout(TypedDict, total=False):
    """The teachers' cross-entropy on held-out unlabelled samples; empty without a holdout."""

    meta: float
    start: float


class Phase(TypedDict):
    """A part of a run: its wall time and its peak memory, None where that was not measured."""

    name: str
    seconds: float
    peak_mb: float | None


class Result(TypedDict):
    """``result.json``.

    Attributes:
        schema: version of this format.
        created: when the run ended, ISO 8601.
        commit: of mdft_fast when its native part was built, where known.
        versions: package -> version.
        device: "cpu", "cuda:0 (name)".
        threads: of torch on the CPU.
        kernels: device -> what computed the operators.
        seed: of every draw.
        transductive: whether unlabelled samples were test images.
        preset: the recipe's.
        pool: the models and the tasks.
        trainable: numbers learned, K · L.
        columns: L names.
        coefficients: λ.
        accuracy: method -> task -> share correct. "control" is stage 2 from task arithmetic.
        intervals: task, and "average" -> specialized minus individual.
        comparisons: "specialized-control", "meta-task_arithmetic", any "<method>-<method>" -> the
            one's average minus the other's, bootstrapped in pairs on the same samples.
        specialize: task -> its path through stage 2.
        holdout: label-free measure of stage 1, where samples were held out.
        phases: in the order of the run.
        warnings: one sentence each.
        filter: of stage 1.
        confusion: task -> what the meta-model takes for what on its test samples.
        recipe: the whole recipe, YAML.
    """

    schema: Literal[1]
    created: str
    commit: str | None
    versions: dict[str, str]
    device: str
    threads: int
    kernels: dict[str, str]
    seed: int
    transductive: bool
    preset: str
    pool: PoolFacts
    trainable: int
    columns: list[str]
    coefficients: Coefficients
    accuracy: dict[Method, dict[str, float]]
    intervals: dict[str, Interval]
    comparisons: NotRequired[dict[str, Interval]]
    specialize: dict[str, list[SpecializePoint]]
    holdout: NotRequired[Holdout | None]
    phases: list[Phase]
    warnings: list[str]
    filter: NotRequired[Filter]
    confusion: NotRequired[dict[str, Confusion]]
    recipe: NotRequired[str]


class Metric(TypedDict):
    """A line of ``metrics.jsonl``: one step."""

    stage: Literal["construct", "specialize", "control"]
    task: str | None
    step: int
    loss: float | None
    losses: dict[str, float | None]
    kept: dict[str, float]
    seconds: float
    samples_per_s: float | None
    lr: float


def read_result(folder: str | os.PathLike[str]) -> Result:
    """Reads and checks a run folder's ``result.json``.

    Raises:
        MdftError: naming the file and the first key that is wrong.
    """
    path = Path(folder) / RESULT
    return _read(path, _text(path), TypeAdapter(Result))


def read_metrics(folder: str | os.PathLike[str]) -> list[Metric]:
    """Reads a run folder's ``metrics.jsonl``; an unfinished last line is left out."""
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    lines = _text(path).split("\n")[:-1]  # what follows the last line end was cut off
    adapter = TypeAdapter(Metric)
    return [_read(f"{path}, line {i}", line, adapter) for i, line in enumerate(lines, 1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MdftError(f"{path}: not readable: {error.strerror}") from None


def _read(where: str | Path, text: str, adapter: TypeAdapter[T]) -> T:
    try:
        return adapter.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise MdftError(f"{where}: {key}: {first['msg']}") from None
    except ValueError as error:
        raise MdftError(f"{where}: not JSON: {error}") from None

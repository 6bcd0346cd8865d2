# SPDX-License-Identifier: Apache-2.0
"""``result.json`` and ``metrics.jsonl``: what a run writes down, and what the report reads.

Shapes: K vectors, L columns of λ. An accuracy is a share from 0 to 1. A model or a task that
is absent from ``accuracy`` was not measured: no labels, or a stage that was not run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from mdft_fast.app.report.compared_models import ComparedModel, compared_models
from mdft_fast.errors import MdftError
from mdft_fast.files import read_text
from mdft_fast.json_checksums import check_content
from mdft_fast.reference import EntropyOf

METRICS = "metrics.jsonl"  # one JSON line a step
TIMES = ("seconds", "samples_per_s")  # of a line; its checksum is equal in equal runs
WITHOUT_METRICS = (
    "put a copy back, or take the file away: the report has no curves of its steps then, and λ is "
    "not in it"
)
Stage = Literal["construct", "specialize", "control"]
T = TypeVar("T")


class TaskCounts(TypedDict):
    """One task's samples."""

    name: str
    classes: int
    unlabelled: int  # samples looked at: those to learn from, and those held out
    of: NotRequired[int]  # samples that the source has; they are among these
    learn: int
    holdout: int
    kept: int  # of those to learn from, the ones that pass the filter
    kept_share: float
    test: int  # labelled samples; 0 where there are none
    samples: NotRequired[str]  # SHA-256 of the unlabelled images
    # of the teacher on ``learn``, as a share of log C: samples in each of equal bins of [0, 1]
    entropy: NotRequired[list[int]]


class Filter(TypedDict):
    """The filter of stage 1, equation (4)."""

    enabled: bool
    mu: float  # kept are samples whose entropy, as a share of log C, is below this
    entropy_of: EntropyOf


class Confusion(TypedDict):
    """How often each class of a task was taken for each, sparse: an item a pair that occurs."""

    classes: list[str]
    true: list[int]  # class of the label, an index into ``classes``
    predicted: list[int]  # class that the model says, likewise
    count: list[int]  # test samples of that pair


class PoolFacts(TypedDict):
    """The pool: its checksum, codec, sizes, and the tensors that are not merged, with why."""

    checksum: str
    codec: str
    parameters: int
    tensors: int
    left_out: dict[str, str]
    methods: NotRequired[list[str]]  # what the task vectors went through
    start: NotRequired[str]  # name of vector 0 where it is a merge that λ starts from
    vectors: NotRequired[list[str]]  # whose λ's rows are, where not the tasks' in this order
    tasks: list[TaskCounts]


class Coefficients(TypedDict):
    """λ at the start, after stage 1 ([K][L]) and, by task, after stage 2 ([K][L]).

    With λ per row, which are many, each tensor's mean over its rows: one number a name in
    ``columns``; the cards hold all of them.
    """

    start: float | list[list[float]]
    construct: list[list[float]]
    specialize: dict[str, list[list[float]]]


class Mixture(TypedDict):
    """A model's shares: of each vector v, ‖λ_v τ_v‖ over the sum of all vectors'."""

    whole: list[float]  # [K], over all tensors
    blocks: list[list[float]]  # [blocks][K]


class Shares(TypedDict):
    """How much of the final models each vector is."""

    blocks: list[str]  # their names, in arena order
    construct: Mixture  # of the meta-model
    specialize: dict[str, Mixture]  # task -> of its specialized model


class Interval(TypedDict):
    """A difference of two accuracies and its 95 % bootstrap interval, on a scale of 0 to 1."""

    difference: float
    low: float
    high: float


class SpecializePoint(TypedDict):
    """Where a specialized model stands after a step; step 0 is before the first."""

    step: int
    loss: float | None  # equation (7); None where it was not measured
    accuracy: float | None  # on the target task; None without labels
    distance: float | None  # L2 distance of λ to e_k; None where λ of that step was not kept
    others: float | None  # mean accuracy on the other tasks; None where not measured


class Holdout(TypedDict, total=False):
    """The teachers' cross-entropy on held-out unlabelled samples; empty without a holdout."""

    meta: float
    start: float


class Phase(TypedDict):
    """A part of a run: its wall time and its peak memory, None where that was not measured."""

    name: str
    seconds: float
    peak_mb: float | None


class StageSteps(TypedDict):
    """How many steps a stage made; stage 1 has no task."""

    stage: Stage
    task: str | None
    steps: int


class Result(TypedDict):
    """``result.json``."""

    schema: Literal[1]
    created: str  # when the run ended, ISO 8601
    commit: str | None  # of mdft_fast when its native part was built, where known
    versions: dict[str, str]
    device: str
    threads: int  # of torch on the CPU
    kernels: dict[str, str]  # device -> what computed the operators
    seed: int
    transductive: bool  # whether unlabelled samples were test images
    preset: str
    pool: PoolFacts
    trainable: int  # numbers learned, K · L
    columns: list[str]  # names of λ's columns; with λ per row the tensors' alone
    coefficients: Coefficients
    compared: NotRequired[list[ComparedModel]]  # what ``accuracy`` holds, in the order shown
    accuracy: dict[str, dict[str, float]]  # model -> task -> share correct
    intervals: dict[str, Interval]  # task, and "average" -> specialized minus individual
    # "a-b" -> a's average minus b's, bootstrapped in pairs on the same samples
    comparisons: NotRequired[dict[str, Interval]]
    specialize: dict[str, list[SpecializePoint]]  # task -> its path through stage 2
    curve_samples: NotRequired[int]  # test samples a task that its accuracies are measured on
    holdout: NotRequired[Holdout | None]
    stages: NotRequired[list[StageSteps]]  # those that were run, in their order
    phases: list[Phase]  # in the order of the run
    warnings: list[str]
    filter: NotRequired[Filter]
    shares: NotRequired[Shares]  # where λ started from a merge
    confusion: NotRequired[dict[str, Confusion]]  # task -> what the meta-model takes for what
    recipe: NotRequired[str]  # the whole recipe, YAML


class Metric(TypedDict):
    """A line of ``metrics.jsonl``: one step."""

    stage: Stage
    task: str | None
    step: int
    loss: float | None
    losses: dict[str, float | None]
    kept: dict[str, float]
    seconds: FiniteFloat  # the checksum does not cover it
    samples_per_s: FiniteFloat | None
    lr: float


def vector_names(result: Result) -> list[str]:
    """Returns whose λ's rows are: the tasks', and before them the start's where there is one."""
    pool = result["pool"]
    return pool.get("vectors") or [task["name"] for task in pool["tasks"]]


def read_result(folder: str | os.PathLike[str]) -> Result:
    """Reads and checks a run folder's ``result.json``.

    Raises:
        MdftError: naming the file and the first key that is wrong.
    """
    path = Path(folder) / "result.json"
    result = _checked(path, _content(path), TypeAdapter(Result), Result.__annotations__)
    unnamed = result["accuracy"].keys() - {model.name for model in compared_models(result)}
    if unnamed:
        raise MdftError(f"{path}: compared: must name all of accuracy, got no {min(unnamed)!r}")
    return result


def read_metrics(folder: str | os.PathLike[str]) -> list[Metric]:
    """Reads a run folder's ``metrics.jsonl``; an unfinished last line is left out.

    Raises:
        MdftError: naming the file, the first line that is not as it was written, and the key; or
            the line before which one is missing.
    """
    path = Path(folder) / METRICS
    if not path.exists():
        return []
    lines = _content(path).split("\n")[:-1]  # what follows the last line end was cut off
    adapter, keys = TypeAdapter(Metric), Metric.__annotations__
    metrics, steps = [], dict[tuple[str, str | None], int]()
    for i, line in enumerate(lines, 1):
        where = f"{path}, line {i}"
        try:
            metric = _checked(where, line, adapter, keys, TIMES)
        except MdftError as error:
            raise MdftError(f"{error}; {WITHOUT_METRICS}") from None
        stage = metric["stage"], metric["task"]
        wanted = steps.get(stage, metric["step"] - 1) + 1
        if metric["step"] != wanted:
            wrong = "lines are missing" if metric["step"] > wanted else "a line stands twice"
            raise MdftError(
                f"{where}: step must be {wanted}, got {metric['step']}: {wrong}; {WITHOUT_METRICS}"
            )
        steps[stage] = wanted
        metrics.append(metric)
    return metrics


def check_end(folder: str | os.PathLike[str], result: Result, metrics: Sequence[Metric]) -> None:
    """Refuses metrics that end before the run did.

    Their first stages may be missing: of a run that was resumed without its older metrics.

    Args:
        folder: whose they are, for the error.
        result: says how many steps each stage made; older ones don't, and nothing is compared.
        metrics: of the run; none are no error.

    Raises:
        MdftError: naming the file, and the first stage whose last steps are missing.
    """
    last = {(line["stage"], line["task"]): line["step"] for line in metrics}
    begun = False
    for made in result.get("stages", ()):
        got = last.get((made["stage"], made["task"]), 0)
        begun = begun or got > 0
        if begun and got != made["steps"]:
            of = f" of {made['task']!r}" if made["task"] is not None else ""
            raise MdftError(
                f"{Path(folder) / METRICS}: must have a line for each of {made['steps']} steps of "
                f"{made['stage']}{of}, got {got}: lines are missing; {WITHOUT_METRICS}"
            )


def _content(path: Path) -> str:
    try:
        return read_text(path, errors="surrogateescape")  # damage is one line's
    except OSError as error:
        raise MdftError(f"{path}: not readable: {error.strerror}") from None


def _checked(
    where: str | Path,
    text: str,
    adapter: TypeAdapter[T],
    keys: Collection[str],
    without: Collection[str] = (),
) -> T:
    try:
        content = json.loads(text)
        check_content(where, content, keys, without)
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise MdftError(f"{where}: {key}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise MdftError(f"{where}: not JSON: {error}") from None

# SPDX-License-Identifier: Apache-2.0
"""The ways from a pool to one model that ``run.py methods`` measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mdft_fast.learning import ConstructConfig, OptimizerConfig
from mdft_fast.methods import METHODS, Merge, Method, method_of
from mdft_fast.model import Granularity

NO_DATA, INPUTS, TRANSFORMED, LEARNED = "no data", "unlabelled inputs", "transformed", "λ learned"
BASELINE = "baseline"
TASK_ARITHMETIC, PRETRAINED, INDIVIDUAL = "task_arithmetic", "pre-trained", "individual models"
# Before a merge. What pcb leaves is shared out, so that its sum is the merge.
TRANSFORMS: tuple[tuple[Any, ...], ...] = (
    *(
        (name, TASK_ARITHMETIC)
        for name in ("ties", "lines", "dare", "della", "breadcrumbs", "consensus", "compeft",
                     "half", "lowrank", "bitdelta", "sign")
    ),
    ("pcb", {TASK_ARITHMETIC: {"scale": 1.0}}),
    ("ties", "wudi"),
    ("lines", "wudi"),
    ("lowrank", "wudi"),
    ("lines", "tsv_m"),
)  # fmt: skip
VARIANTS: tuple[dict[str, Any], ...] = (
    {"calibrate": {"samples": 64}},
    {"calibrate": {"samples": 160}},
    {"calibrate": {"fisher": 0.0}},
    {"calibrate": {"copies": 1}},
    {"calibrate": {"copies": 2}},
)


@dataclasses.dataclass(frozen=True)
class Learning:
    """λ learned by stage 1 on the cross-entropy to the teachers alone.

    Attributes:
        granularity: of λ.
        lr: Adam's, cosine.
    """

    granularity: Granularity = "tensor"
    lr: float = 0.003

    def config(self, holdout: float, seed: int) -> ConstructConfig:
        """Returns stage 1's configuration."""
        return ConstructConfig(
            steps=100, batch=16, use_entropy=False, reweight="off", filter=False,
            optimizer=OptimizerConfig("adam", self.lr, "cosine"), holdout=holdout, seed=seed,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way from a pool to one model.

    Attributes:
        kind: how tables group it.
        methods: as recipes have them, transforms and then a merge; none: λ starts from numbers.
        learning: how λ is learned from that merge, or from 0.3; None: it is not.
    """

    kind: str
    methods: tuple[Any, ...]
    learning: Learning | None = None

    @property
    def steps(self) -> list[Method]:
        """The methods."""
        return [method_of(entry, METHODS) for entry in self.methods]

    @property
    def name(self) -> str:
        """What it is called, by what is not the default."""
        made = ", ".join(map(_words, self.methods)) or "0.3"
        if self.learning is None:
            return made
        lr = "" if self.learning.lr == Learning.lr else f" at {self.learning.lr}"
        return f"λ per {self.learning.granularity} from {made}{lr}"

    def uses(self, names: set[str]) -> bool:
        """Tells whether one of its methods has one of some names."""
        return any(step.name in names for step in self.steps)

    def described(self) -> dict[str, Any]:
        """Returns it as JSON values: equal ones, equal measurements."""
        learning = dataclasses.asdict(self.learning) if self.learning else None
        methods = [str(step) for step in self.steps]  # with every field, defaults too
        return {"candidate": self.name, "kind": self.kind, "methods": methods, "learn": learning}


def _words(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    ((name, fields),) = entry.items()
    return f"{name} ({', '.join(f'{key} {value}' for key, value in fields.items())})"


def candidates() -> Iterator[Candidate]:
    """Gives all, cheap ones first, and each start just before λ is learned from it."""
    merges = {name: one for name, one in METHODS.items() if one.kind == "merge"}
    for name in merges:
        if issubclass(merges[name], Merge):
            yield Candidate(BASELINE if name == TASK_ARITHMETIC else NO_DATA, (name,))
    for entries in TRANSFORMS:
        yield Candidate(TRANSFORMED, entries)
    yield Candidate(INPUTS, ("calibrate",))
    yield Candidate(LEARNED, ("calibrate",), Learning())
    yield Candidate(LEARNED, ("calibrate",), Learning("row"))
    yield Candidate(LEARNED, (), Learning())
    yield Candidate(LEARNED, (), Learning(lr=0.2))
    yield Candidate(LEARNED, ("wudi",), Learning())
    for entry in VARIANTS:
        yield Candidate(INPUTS, (entry,))
    for name in merges:
        if name != "calibrate" and not issubclass(merges[name], Merge):
            yield Candidate(INPUTS, (name,))
    yield Candidate(TRANSFORMED, ("lines", "calibrate"))

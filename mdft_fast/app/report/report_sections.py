# SPDX-License-Identifier: Apache-2.0
"""What a report says, part by part: the one structure that page and Markdown are made from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from mdft_fast.app.report.accuracies import ABSENT, Table, accuracy_section, transductive
from mdft_fast.app.report.coefficient_maps import coefficients_section
from mdft_fast.app.report.compared_models import compared_models
from mdft_fast.app.report.confusion_maps import confusion_section
from mdft_fast.app.report.course import samples_section, stage_1_section, stage_2_section
from mdft_fast.app.report.schema import Metric, Result
from mdft_fast.app.report.share_charts import shares_section
from mdft_fast.app.report.verdicts import title, verdict


class Word(NamedTuple):
    """A word of the report, explained once; the page links to it by its anchor."""

    anchor: str
    word: str
    meaning: str


_WORDS = (
    Word(
        "lambda", "λ",
        "how much of each fine-tuned model's change to the base goes into each tensor; all that "
        "is learned. At λ = 0 there is the pre-trained base.",
    ),
    Word(
        "e_k", "e_k",
        "the λ that is 1 for task k and 0 for the others: task k's own fine-tuned model, its "
        "teacher.",
    ),
    Word(
        "teacher", "teacher",
        "the fine-tuned model of a sample's own task; λ is learned from its answers, not from "
        "labels.",
    ),
    Word(
        "equation4", "equation (4)",
        "the filter: a sample is kept while its teacher's entropy is below μ · log C, for C "
        "classes. Equations have the paper's numbers, as in docs/method.md.",
    ),
)  # fmt: skip


def legend(result: Result) -> list[Word]:
    """Returns each word that the report uses, and what it means."""
    models = [model for model in compared_models(result) if model.name in result["accuracy"]]
    return [*_WORDS, *(Word(m.name, m.label, m.meaning) for m in models if m.meaning)]


def report_sections(result: Result, metrics: Sequence[Metric], recipe: str = "") -> dict[str, Any]:
    """Returns what the templates read; a part that a run lacks is None or empty.

    Raises:
        MdftError: if the confusion counts do not fit the classes.
    """
    return {
        "result": result,
        "title": title(result),
        "verdict": verdict(result),
        "legend": legend(result),
        "transductive": transductive(result),
        "accuracy": accuracy_section(result),
        "stage_1": stage_1_section(result, metrics),
        "coefficients": coefficients_section(result),
        "samples": samples_section(result),
        "stage_2": stage_2_section(result, metrics),
        "shares": shares_section(result),
        "confusions": confusion_section(result),
        "cost": _cost_section(result, metrics),
        "origin": _origin_section(result),
        "recipe": result.get("recipe", recipe),
    }


def _cost_section(result: Result, metrics: Sequence[Metric]) -> dict[str, Any] | None:
    phases = result["phases"]
    if not phases:
        return None
    seconds, peaks = [p["seconds"] for p in phases], [p["peak_mb"] or 0.0 for p in phases]
    rows = [
        (p["name"], f"{p['seconds']:,.2f}", f"{p['peak_mb']:,.0f}" if p["peak_mb"] else ABSENT)
        for p in phases
    ]
    peak = (
        "Peak: what was resident in the phase, with PyTorch and with the pages of mapped files, "
        "which the system takes back at need; on a GPU, what was allocated there."
    )
    rows.append(("sum", f"{sum(seconds):,.2f}", ""))
    return {
        "title": "Time and memory",
        "table": Table(["phase", "seconds", "peak MB"], rows, total=True),
        "notes": [peak, *_step_times(metrics)],
        "shares": [
            (round(100 * a / (max(seconds) or 1), 1), round(100 * b / (max(peaks) or 1), 1))
            for a, b in zip(seconds, peaks, strict=True)
        ],
    }


def _step_times(metrics: Sequence[Metric]) -> list[str]:
    """Returns a sentence a stage: what a step takes."""
    sentences = []
    for stage, name in (("construct", "stage 1"), ("specialize", "stage 2")):
        lines = [line for line in metrics if line["stage"] == stage]
        if lines:
            step = 1000 * statistics.median(line["seconds"] for line in lines)
            rate = statistics.median(line["samples_per_s"] or 0.0 for line in lines)
            sentences.append(
                f"A step of {name}: {step:,.1f} ms in the median, {rate:,.0f} samples a second."
            )
    return sentences


def _origin_section(result: Result) -> dict[str, Any]:
    pool, threads = result["pool"], result["threads"]
    facts = {
        "created": result["created"],
        "preset": result["preset"],
        "seed": str(result["seed"]),
        "unlabelled samples": "test images: transductive"
        if result["transductive"]
        else "not those that accuracy is measured on",
        "pool": f"sha256 `{pool['checksum']}`, codec {pool['codec']}",
        "merged": f"{pool['parameters']:,} parameters in {pool['tensors']:,} tensors",
        "device": f"{result['device']}, {threads} thread{'s' * (threads != 1)}",
        "operators": ", ".join(f"{where}: {what}" for where, what in result["kernels"].items()),
        "commit of the native build": result["commit"] or "unknown",
        "versions": ", ".join(f"{name} {which}" for name, which in result["versions"].items()),
    }
    left_out = [(f"`{name}`", why) for name, why in pool["left_out"].items()]
    count = "1 tensor is" if len(left_out) == 1 else f"{len(left_out)} tensors are"
    return {
        "title": "Where this comes from",
        "table": Table(["", ""], list(facts.items()), left=2),
        "notes": [] if left_out else ["Every tensor is merged."],
        "left_out": Table(["tensor", "why"], left_out, left=2),
        "left_out_count": f"{count} not merged",
        "digests": [(t["name"], t["samples"]) for t in pool["tasks"] if "samples" in t],
    }

# SPDX-License-Identifier: Apache-2.0
"""The report's text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mdft_fast.app.report.accuracy_pictures import LABELS, rows
from mdft_fast.app.report.legend import legend
from mdft_fast.app.report.schema import Metric, Result
from mdft_fast.app.report.series import PEAK, step_times
from mdft_fast.app.report.verdict import interval, points, title, verdict

ABSENT = "\N{EN DASH}"


def markdown(
    result: Result, metrics: Sequence[Metric], pictures: Mapping[str, str], recipe: str
) -> str:
    """Returns the report.

    Args:
        result: of the run.
        metrics: of the run; may be empty.
        pictures: name -> path relative to the report.
        recipe: text of ``recipe.yaml``; may be empty.
    """
    parts = [
        f"# {title(result)}",
        *verdict(result),
        *_warnings(result),
        "\n".join(f"* **{word}**: {meaning}" for word, meaning in legend(result)),
        *_accuracy(result, pictures),
        *_stage_1(result, metrics, pictures),
        *_stage_2(result, pictures),
        *_samples(result),
        *_cost(result, metrics, pictures),
        *_origin(result, recipe),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], lines: Iterable[Sequence[object]], left: int = 1) -> str:
    """Returns a Markdown table; the first ``left`` columns are aligned left, the others right."""
    rule = [":--" if i < left else "--:" for i in range(len(header))]
    cells = [header, rule, *lines]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in cells)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _picture(pictures: Mapping[str, str], name: str, words: str) -> list[str]:
    return [f"![{words}]({pictures[name]})"] if name in pictures else []


def _warnings(result: Result) -> Iterator[str]:
    if result["warnings"]:
        yield "\n".join(["**Warnings**", "", *(f"* {line}" for line in result["warnings"])])


def _accuracy(result: Result, pictures: Mapping[str, str]) -> Iterator[str]:
    lines = rows(result)
    if not lines:
        return
    used = [m for m in LABELS if any(m in values for _, values in lines)]
    body = []
    for name, values in lines:
        cells = [f"{100 * values[m]:.1f}" if m in values else ABSENT for m in used]
        bold = name == "average" and len(lines) > 1
        body.append([f"**{c}**" for c in (name, *cells)] if bold else [name, *cells])
    yield "## Accuracy"
    yield "Top-1 in per cent on each task's test set; its labels were read here and nowhere else."
    yield table(["task", *(LABELS[m] for m in used)], body)
    yield from _transductive(result)
    if any(name != "average" and len(values) < len(used) for name, values in lines):
        yield "An average is left out where a method was not measured on every task above."
    yield from _picture(pictures, "accuracy", "accuracy of every method by task")


def _transductive(result: Result) -> Iterator[str]:
    """Gives what stands below every table of accuracies or samples."""
    if result["transductive"]:
        yield "**Transductive**: unlabelled samples are test images."


def _stage_1(
    result: Result, metrics: Sequence[Metric], pictures: Mapping[str, str]
) -> Iterator[str]:
    tasks, columns = len(result["pool"]["tasks"]), len(result["columns"])
    steps = sum(line["stage"] == "construct" for line in metrics)
    yield "## Stage 1: the meta-model"
    learned = f"{result['trainable']:,} numbers were learned: {tasks} task vectors x {columns:,} "
    yield (
        learned
        + ("columns of λ" if columns != 1 else "column of λ")
        + (f", in {steps} steps." if steps else ".")
    )
    yield from _picture(pictures, "coefficients", "λ after stage 1, by task and layer")
    yield from _picture(pictures, "losses", "loss of stage 1 by step")


def _stage_2(result: Result, pictures: Mapping[str, str]) -> Iterator[str]:
    paths = {name: path for name, path in result["specialize"].items() if path}
    if not result["coefficients"]["specialize"] and not paths:
        return
    yield "## Stage 2: the specialized models"
    yield from _picture(pictures, "gains", "specialized minus individual, with intervals")
    if paths:
        body = []
        for name, path in paths.items():
            last, known = path[-1], result["intervals"].get(name)
            difference = points(known["difference"]) if known else ABSENT
            ends = interval(known["low"], known["high"])[14:] if known else ABSENT
            others = f"{100 * last['others']:.1f}" if last["others"] is not None else ABSENT
            moved = f"{path[0]['distance']:.2f} → {last['distance']:.2f}"
            body.append([name, difference, ends, moved, others])
        header = ["task", "against individual", "95 % interval", "distance to e_k", "others, %"]
        yield table(header, body)
        yield (
            "Distance: L2 of λ − e_k, where λ = e_k is the individual model itself. Others: mean "
            "accuracy of the specialized model on the other tasks."
        )
        yield from _transductive(result)
    yield from _picture(pictures, "accuracy_path", "accuracy over the steps of stage 2")
    yield from _picture(pictures, "distance_path", "distance of λ to the individual model's")
    yield from _picture(pictures, "mixture", "mean λ of each task vector in each model")


def _samples(result: Result) -> Iterator[str]:
    yield "## Samples"
    body = [
        [t["name"], t["classes"], t["unlabelled"], t["learn"], t["holdout"], t["kept"],
         f"{100 * t['kept_share']:.1f} %", t["test"] or ABSENT]
        for t in result["pool"]["tasks"]
    ]  # fmt: skip
    header = ["task", "classes", "unlabelled", "to learn", "held out", "kept", "share kept", "test"]
    yield table(header, body)
    yield "Kept: samples to learn from whose entropy passes the filter (equation 4)."
    yield from _transductive(result)


def _cost(result: Result, metrics: Sequence[Metric], pictures: Mapping[str, str]) -> Iterator[str]:
    if not result["phases"]:
        return
    yield "## Time and memory"
    yield from _picture(pictures, "phases", "seconds and peak memory of each phase")
    body = [
        [
            p["name"],
            f"{p['seconds']:,.2f}",
            ABSENT if p["peak_mb"] is None else f"{p['peak_mb']:,.0f}",
        ]
        for p in result["phases"]
    ]
    total = sum(phase["seconds"] for phase in result["phases"])
    yield table(["phase", "seconds", "peak MB"], [*body, ["**sum**", f"**{total:,.2f}**", ""]])
    yield PEAK
    yield from step_times(metrics)


def _origin(result: Result, recipe: str) -> Iterator[str]:
    pool = result["pool"]
    yield "## Where this comes from"
    facts = {
        "created": result["created"],
        "preset": result["preset"],
        "seed": result["seed"],
        "pool": f"sha256 `{pool['checksum']}`, codec {pool['codec']}",
        "merged": f"{pool['parameters']:,} parameters in {pool['tensors']:,} tensors",
        "device": f"{result['device']}, {result['threads']} threads",
        "operators": ", ".join(f"{where}: {what}" for where, what in result["kernels"].items()),
        "commit of the native build": result["commit"] or "unknown",
        "versions": ", ".join(f"{name} {which}" for name, which in result["versions"].items()),
    }
    yield table(["", ""], facts.items(), left=2)
    left_out = pool["left_out"]
    if left_out:
        listed = table(["tensor", "why"], ((f"`{n}`", why) for n, why in left_out.items()), left=2)
        count = "1 tensor is" if len(left_out) == 1 else f"{len(left_out)} tensors are"
        yield _folded(f"{count} not merged", listed)
    else:
        yield "Every tensor is merged."
    if recipe:
        yield _folded("Recipe, in full", f"```yaml\n{recipe.rstrip()}\n```")


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"

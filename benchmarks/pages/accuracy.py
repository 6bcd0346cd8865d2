# SPDX-License-Identifier: Apache-2.0
"""Accuracies: of the pools, by task; by codec of the task vectors; of the candidates for defaults.

Read from real_pool.json, real_pool_paper.json and demo_pool.json (``{"runs": [result.json, ...]}``,
benchmarks/collect_runs.py), codec_accuracy.json and defaults.json (the scripts of these names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.markdown import mean, number, origin, percent, signed, spread, table
from mdft_fast.app.report import rows_of_table


class PoolName(NamedTuple):
    """What the pages call a pool."""

    title: str
    short: str


POOLS = {
    "real_pool": PoolName(
        "Real pool: ViT-Tiny/16 and eight models fine-tuned on real images", "real pool"
    ),
    "real_pool_paper": PoolName(
        "Real pool, the paper's objective (Adam 0.01 cosine; stage 2 Adam 0.05)",
        "real pool, the paper's objective",
    ),
    "demo_pool": PoolName("Demo pool: what `make demo` trains and runs", "demo pool"),
}
METHODS = {model.name: model.long for model in rows_of_table(start=True)}
COMPARISONS = {
    "meta-start": "Meta-model less the start",
    "meta-task_arithmetic": "Meta-model less task arithmetic",
    "specialized-individual": "Specialized less individual models",
    "specialized-control": "Specialized less control",
}


def averages(runs: Sequence[Any]) -> dict[str, list[float]]:
    """Returns method -> mean accuracy over the tasks, one a run, where every run has it."""
    by_run = {m: [r["accuracy"][m] for r in runs if r["accuracy"].get(m)] for m in METHODS}
    return {m: [mean(a) for a in each] for m, each in by_run.items() if len(each) == len(runs)}


def summary(pools: Mapping[str, Any]) -> Iterator[str]:
    """Gives the pools' averages side by side, for the README."""
    columns = [averages(content["runs"]) for content in pools.values()]
    rows = [
        [words, *(spread(column[method]) if method in column else "" for column in columns)]
        for method, words in METHODS.items()
        if any(method in column for column in columns)
    ]
    titles = [f"{POOLS[name].short}, {_seeds(content)}" for name, content in pools.items()]
    yield table(["average top-1, per cent", *titles], rows)


def _seeds(content: Any) -> str:
    seeds = [str(run["seed"]) for run in content["runs"]]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def section(name: str, content: Any) -> Iterator[str]:
    """Gives a pool's accuracies by task, for the page of results."""
    runs = content["runs"]
    first, methods = runs[0], averages(runs)
    yield f"## {POOLS[name].title}"
    rows: list[Sequence[object]] = []
    for task in first["pool"]["tasks"]:
        values = [mean(run["accuracy"][m][task["name"]] for run in runs) for m in methods]
        rows.append([task["name"], task["classes"], *map(percent, values)])
    rows.append(["**average**", "", *(f"**{percent(mean(a))}**" for a in methods.values())])
    yield table(["task", "classes", *(METHODS[m] for m in methods)], rows)
    yield (
        f"Top-1 in per cent, mean over {len(runs)} seed{'s' * (len(runs) > 1)}, "
        f"preset `{first['preset']}`."
    )
    yield from differences(runs)
    if "trainable" in first:
        yield f"Numbers learned (K · L): {first['trainable']:,}."
    if all(run.get("phases") for run in runs):
        names = [phase["name"] for phase in first["phases"]]
        seconds = {
            name: [p["seconds"] for run in runs for p in run["phases"] if p["name"] == name]
            for name in names
        }
        rows = [[name, f"{mean(each):.1f}"] for name, each in seconds.items()]
        yield table(["phase", "seconds, mean over seeds"], rows)
    yield origin(first | {"command": content.get("command")})


def differences(runs: Sequence[Any]) -> Iterator[str]:
    """Gives the paired comparisons that every run holds, one a seed."""
    for name, words in COMPARISONS.items():
        intervals = [run.get("comparisons", {}).get(name) for run in runs]
        if name == "specialized-individual" and not all(intervals):
            intervals = [run.get("intervals", {}).get("average") for run in runs]
        if all(intervals):
            listed = "; ".join(
                f"{signed(one['difference'])} [{signed(one['low'])}, {signed(one['high'])}]"
                for one in intervals
            )
            yield f"{words}, points with 95 % bootstrap interval, one a seed: {listed}."


def codecs(content: Any) -> Iterator[str]:
    """Gives what a codec of the task vectors costs in accuracy."""
    yield "## Accuracy by codec of the task vectors"
    lines = []
    for codec in dict.fromkeys(row["codec"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["codec"] == codec]
        exact = [f"{100 * rows[0][name]:.2f}" for name in ("agreement", "individual")]
        learned = [spread([row[name] for row in rows]) for name in ("meta", "specialized")]
        lines.append([codec, f"{rows[0]['vectors_mb']:.1f}", *exact, *learned, len(rows)])
    header = ["codec", "task vectors, MB", "same answers", "individual"]
    yield table([*header, "stage 1", "stage 2", "seeds"], lines)
    yield (
        "The real pool of the first section, preset `default`; in per cent, mean over seeds "
        "(lowest to highest). Same answers: how often a packed pool's own model (λ = 1 at its "
        "task) names the class that the original names, on the test images, without labels; "
        "individual: its accuracy. Both stages learned on the packed task vectors, teachers "
        "included."
    )
    yield origin(content)


def defaults(content: Any) -> Iterator[str]:
    """Gives the candidates for ``preset: default``, ranked without labels."""
    yield "## How the defaults were chosen"
    for stage, title, columns in (
        ("start", "Starts, as they are", ["start"]),
        ("construct", "Stage 1", ["start", "objective", "granularity", "lr", "schedule"]),
        ("specialize", "Stage 2", ["start", "lr", "schedule"]),
    ):
        rows = [
            [*("" if c[name] is None else c[name] for name in columns), number(c["share"], 4),
             percent(c["agreement"])]
            for c in content[stage]
        ]  # fmt: skip
        yield f"{title}, best first:"
        yield table([*columns, "share", "agree"], rows, left=len(columns))
    yield (
        f"Share: {content['measure']}. Agree: how often the class is the teacher's on the same "
        f"samples, per cent. {origin(content)}"
    )

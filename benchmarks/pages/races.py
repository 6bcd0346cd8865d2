# SPDX-License-Identifier: Apache-2.0
"""Races: operators and a whole step of stage 1, from benchmarks/run.py's kernels and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness import OURS
from benchmarks.markdown import origin, table

RACES = {
    "kernels_cpu": "Operators on the CPU",
    "step_cpu": "A whole step of stage 1 on the CPU",
    "kernels_cuda": "Operators on CUDA",
    "step_cuda": "A whole step of stage 1 on CUDA",
}
FLOOR = "floor: one plain model"
NO_RIVALS = (OURS, "floor", "teachers")  # our other modes, the bound, and what a run does once
VECTORS = {"": "as the base", "int8 τ, ": "int8", "int4 τ, ": "int4"}
MODELS = ("ViT-B/32 fp32", "ViT-B/32 bf16", "ViT-L/14 fp32", "ViT-L/14 bf16")


def rivals(race: Mapping[str, Any]) -> dict[str, float]:
    """Returns the contestants that are not ours: name -> how many times our time it takes."""
    return {
        name: contestant["over_ours"]
        for name, contestant in race["contestants"].items()
        if not name.startswith(NO_RIVALS)
    }


def summary(name: str, content: Any) -> str:
    """Returns a line for the README: how often we are faster than the strongest rival."""
    strongest = [min(rivals(race).values()) for race in content["results"] if rivals(race)]
    faster = sum(ratio > 1 for ratio in strongest)
    busy = " The machine was busy with other work then." if content.get("busy") else ""
    return (
        f"**{RACES[name]}**: faster than the fastest alternative in {faster} of "
        f"{len(content['results'])} cases, device {content.get('device')}.{busy}"
    )


def section(name: str, content: Any) -> Iterator[str]:
    """Gives a race's table: ours beside the strongest contestant."""
    yield f"## {RACES[name]}"
    header = ["operator", "case", "ours, ms", "of copy", "best other", "its ms", "its time / ours"]
    yield table(header, map(_line, content["results"]), left=2)
    yield (
        "Medians; the ratio is the median of ratios within a round, above 1 where we are faster. "
        "Of copy: bytes that must be moved a second, as a share of what a plain copy reaches in "
        "the same rounds. The JSON has every contestant, quartiles and memory."
    )
    for race in content["results"]:
        if FLOOR in race["contestants"]:
            yield f"**{race['case']}**, {race['rounds']} rounds:"
            yield table(["contestant", "ms", "/ floor", "/ ours"], _contestants(race))
            left = race["does_not_work_here"].items()
            yield "".join(f"Left out: {name} ({why}). " for name, why in left).strip() or "All ran."
    yield origin(content)


def _line(race: Mapping[str, Any]) -> list[object]:
    """Returns our time, our share of a copy's rate, the strongest rival, the ratio."""
    contestants, ratios = race["contestants"], rivals(race)
    ours = contestants[OURS]
    share = f"{100 * ours['share_of_copy']:.0f} %" if "share_of_copy" in ours else ""
    line = [race["op"], race["case"], f"{ours['median_ms']:.4g}", share]
    if not ratios:
        return [*line, "", "", ""]
    best = min(ratios, key=lambda name: ratios[name])
    return [*line, best, f"{contestants[best]['median_ms']:.4g}", f"{ratios[best]:.2f}"]


def _contestants(race: Mapping[str, Any]) -> Iterator[list[object]]:
    """Gives a line a contestant, the fastest first."""
    contestants = race["contestants"]
    floor = contestants[FLOOR]["median_ms"]
    for name, c in sorted(contestants.items(), key=lambda item: item[1]["median_ms"]):
        ratios = c["median_ms"] / floor, c["over_ours"]
        yield [name, f"{c['median_ms']:.4g}", *(f"{ratio:.2f}" for ratio in ratios)]


# The blocks of docs/kernels.md.


def operator_table(op: str, content: Any) -> str:
    """Returns a line a model, a column a codec: our time, share of copy's rate, best rival."""
    races = {race["case"]: race for race in content["results"] if race["op"] == op}
    lines = []
    for model in MODELS:
        cells = []
        for codec in VECTORS:
            race = races[f"{model}, {codec}λ per tensor"]
            ours = race["contestants"][OURS]
            share, least = 100 * ours["share_of_copy"], min(rivals(race).values())
            cells.append(f"{ours['median_ms']:.0f} ms, {share:.0f} %, {least:.1f} x")
        lines.append([model, *cells])
    return table(["base", *VECTORS.values()], lines)


def losses(content: Any) -> str:
    """Returns every case in which a rival is faster, in words."""
    return "\n".join(
        f"* {race['op']}, {race['case']}: {name} takes {ratio:.2f} of our time"
        for race in content["results"]
        for name, ratio in rivals(race).items()
        if ratio < 1
    ) or "None."  # fmt: skip


def entropy_table(content: Any) -> str:
    """Returns a line a case of the loss: our time, and the rivals' in ours."""
    races = [race for race in content["results"] if race["op"] == "debiased_entropy"]
    names = list(rivals(races[0]))
    lines = [
        [race["case"], f"{race['contestants'][OURS]['median_ms']:.2f} ms",
         *(f"{rivals(race)[name]:.1f} x" for name in names)]
        for race in races
    ]  # fmt: skip
    return table(["case", "ours", *names], lines)


def step_table(content: Any) -> str:
    """Returns a line a way to take a step, a column a case: its time in the floor's."""
    races = content["results"]
    names = dict.fromkeys(name for race in races for name in race["contestants"])
    lines = []
    for name in names:
        if name.startswith(("floor", "teachers")):
            continue
        cells = []
        for race in races:
            floor, contestant = race["contestants"][FLOOR], race["contestants"].get(name)
            cells.append(
                f"{contestant['median_ms'] / floor['median_ms']:.2f}" if contestant else ""
            )
        lines.append([name, *cells])
    return table(["/ floor", *(race["case"] for race in races)], lines)

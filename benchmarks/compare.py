# SPDX-License-Identifier: Apache-2.0
"""Compares a new measurement with an old one: is a path slower than it was?

Times of two days do not compare: the machine differs. What is compared is a speed against
yardsticks that ran in the same rounds, the rivals and the rate of a copy, new over old, and of
several yardsticks the median. Noise comes from the standard errors of the medians, which the
quartiles tell.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import OURS
from benchmarks.markdown import table

# Of a median of n values, in interquartile ranges over sqrt(n): 1.253 sigma, and sigma is 0.741.
STANDARD_ERROR = 1.253 * 0.741
BOUND = 2  # standard errors that a change must exceed
COPY = "copy"


class Speed(NamedTuple):
    """A speed over a yardstick's, above 1 where we are faster, and its relative standard error."""

    value: float
    error: float


Speeds = Mapping[str, Speed]  # yardstick -> speed


class Change(NamedTuple):
    """What became of a case.

    Attributes:
        old: speed over the strongest yardstick then, the copy where there is no other.
        new: the same now, over the same.
        ratio: new over old, the median over all yardsticks.
        low: the lowest of them.
        high: the highest.
        noise: what ``ratio`` must exceed to count, or its inverse.
    """

    old: float
    new: float
    ratio: float
    low: float
    high: float
    noise: float

    @property
    def verdict(self) -> str:
        """Says ``slower`` or ``faster`` beyond noise, or nothing."""
        if self.ratio * self.noise < 1:
            return "slower"
        return "faster" if self.ratio > self.noise else ""


def speeds(row: Mapping[str, Any]) -> Iterator[tuple[str, Speeds]]:
    """Yields the cases of a row of results, of any suite; all values are better when larger."""
    if "contestants" in row:
        yield from _race_speeds(row)
    elif "K" in row:  # scaling
        for op, rival in (("merge", "addmv"), ("merge_dots", "mv")):
            against = {COPY: Speed(row["share_of_copy"][op], 0.0)}
            if rival in row["ms"]:
                against[rival] = Speed(row["ms"][rival] / row["ms"][op], 0.0)
            yield f"{op}: K = {row['K']}, {row['codec']}", against
    elif "images_per_s" in row:
        floor = row["images_per_s"]["encoder, forward"]
        for name in ("decoding", "opening", "cached batches"):
            case = f"data: {row['case']}, {row['threads']} threads, {name}"
            yield case, {"encoder": Speed(row["images_per_s"][name] / floor, 0.0)}
    elif "ways" in row:
        for name, way in row["ways"].items():
            yield f"pack: {row['case']}, {name}", {COPY: Speed(1 / way["over_copy"], 0.0)}
    elif "limit_mb" not in row:
        case = f"memory: {row['model']}, {row['way']}, {row['codec']}"
        yield case, {"bytes": Speed(1 / row["anonymous_mb"], 0.0)}


def _race_speeds(row: Mapping[str, Any]) -> Iterator[tuple[str, Speeds]]:
    """Yields our operator and our other ways, each against every rival and the copy."""
    contestants, rounds = row["contestants"], row["rounds"]
    errors = {n: _error(c["iqr_ms"], c["median_ms"], rounds) for n, c in contestants.items()}
    rivals = {n: c for n, c in contestants.items() if not n.startswith((OURS, "teachers"))}
    for name, one in contestants.items():
        if not name.startswith(OURS):
            continue
        against = {}
        for rival, other in rivals.items():
            error = math.hypot(errors[name], errors[rival])
            if name == OURS and "over_ours_iqr" in other:  # of the ratios themselves
                error = _error(other["over_ours_iqr"], other["over_ours"], rounds)
            against[rival] = Speed(other["over_ours"] / one["over_ours"], error)
        if "share_of_copy" in one:
            against[COPY] = Speed(one["share_of_copy"], errors[name])
        yield f"{row['op']}: {row['case']}{name.removeprefix(OURS)}", against


def _error(quartiles: list[float], median: float, rounds: int) -> float:
    return STANDARD_ERROR * (quartiles[1] - quartiles[0]) / median / math.sqrt(rounds)


def change(old: Speeds, new: Speeds, tolerance: float) -> Change | None:
    """Returns what became of a case; None where no yardstick ran in both."""
    ratios = {name: new[name].value / old[name].value for name in old if name in new}
    if not ratios:
        return None
    errors = [math.hypot(old[name].error, new[name].error) for name in ratios]
    strongest = min((n for n in ratios if n != COPY), key=lambda n: old[n].value, default=COPY)
    return Change(
        old[strongest].value,
        new[strongest].value,
        statistics.median(ratios.values()),
        min(ratios.values()),
        max(ratios.values()),
        max(1 + tolerance, math.exp(BOUND * statistics.median(errors))),
    )


def changes(old: Any, new: Any, tolerance: float) -> dict[str, Change]:
    """Returns case -> change, of all cases that two files of results share."""
    before, after = (
        {case: one for row in content["results"] for case, one in speeds(row)}
        for content in (old, new)
    )
    both = {case: change(before[case], after[case], tolerance) for case in before if case in after}
    return {case: one for case, one in both.items() if one}


def report(compared: Mapping[str, Change]) -> str:
    """Returns a Markdown table and a sentence."""
    lines = [
        [case, f"{c.old:.3g}", f"{c.new:.3g}", f"{c.ratio:.2f}", f"{c.low:.2f} to {c.high:.2f}",
         f"{c.noise:.2f}", c.verdict]
        for case, c in compared.items()
    ]  # fmt: skip
    header = ["case", "old speed", "new speed", "new / old", "over yardsticks", "noise", ""]
    slower = sum(c.verdict == "slower" for c in compared.values())
    faster = sum(c.verdict == "faster" for c in compared.values())
    middle = statistics.median(c.ratio for c in compared.values())
    return (
        f"{table(header, lines)}\n\n{len(compared)} cases: {slower} slower, {faster} faster beyond "
        f"noise; new / old {middle:.2f} in the median. Speed: over the strongest yardstick in OLD, "
        "the copy where there is no other. Slower: new / old is below 1 / noise."
    )


def main(argv: list[str]) -> int:
    """Prints the table; status 1 if a path is slower beyond noise, 2 if nothing can be compared."""
    parser = argparse.ArgumentParser(prog="run.py compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--tolerance", type=float, default=0.1, metavar="SHARE",
                        help="a smaller change is noise (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(argv[1:])
    old, new = (json.loads(path.read_text("utf-8")) for path in (options.old, options.new))
    compared = changes(old, new, options.tolerance)
    if not compared:
        print("nothing to compare: the files share no case")
        return 2
    print(report(compared))
    for name, content in (("OLD", old), ("NEW", new)):
        if content.get("busy"):
            print(f"{name} was measured while the machine was busy with other work.")
    return int(any(c.verdict == "slower" for c in compared.values()))

# SPDX-License-Identifier: Apache-2.0
"""Kills and mutations, from make test-heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import origin, table

_RIGHT = ("same bits", "right content", "refused", "other content")


def block(content: Any) -> str:
    """Returns how often what happened, by command and by format."""
    kills = ["killed", "times", "same bits", "wrong"]
    header = ["format", "checksum", "mutations", "as it was", "refused", "other content", "wrong"]
    return "\n\n".join([
        table(kills, map(_kill, content["kills"])),
        table(header, map(_mutation, content["mutations"]), left=2),
        origin(content),
    ])  # fmt: skip


def _kill(row: Mapping[str, Any]) -> list[object]:
    return [f"`mdft {_command(row)}`", row["times"], _count(row, "same bits"), _wrong(row)]


def _command(row: Mapping[str, Any]) -> str:
    return "run --resume" if row["command"] == "resume" else str(row["command"])


def _mutation(row: Mapping[str, Any]) -> list[object]:
    counts = [_count(row, kind) for kind in ("right content", "refused")]
    other = "none" if row["checksum"] else _count(row, "other content")
    kind = "yes" if row["checksum"] else "no"
    return [row["format"], kind, f"{row['times']:,}", *counts, other, _wrong(row)]


def _count(row: Mapping[str, Any], kind: str) -> str:
    return f"{row['outcomes'].get(kind, 0):,}"


def _wrong(row: Mapping[str, Any]) -> str:
    wrong = {kind: n for kind, n in row["outcomes"].items() if kind not in _RIGHT}
    return ", ".join(f"{n} {kind}" for kind, n in wrong.items()) or "0"

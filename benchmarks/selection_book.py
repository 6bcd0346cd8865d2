# SPDX-License-Identifier: Apache-2.0
"""The rows of a selection: kept on disk, and ranked by their means."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import mean
from mdft_fast.files import write_json

Row = dict[str, Any]


class Book:
    """The rows so far, on disk after each one.

    Args:
        path: of the JSON; its rows are kept.
        fields: what is chosen -> which of a row's values are its candidate's.
        about: what else the JSON says.
    """

    def __init__(
        self, path: Path, fields: Mapping[str, Sequence[str]], about: Mapping[str, Any]
    ) -> None:
        self._path, self._fields, self._about = path, fields, about
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.pools: dict[str, dict[str, list[Row]]] = {
            name: rows for name, rows in held.get("pools", {}).items() if "start" in rows
        }

    def known(self, pool: str, stage: str, about: Row) -> Row | None:
        """Returns the row with these values, if it was measured."""
        rows = self.pools.get(pool, {}).get(stage, [])
        return next((r for r in rows if all(r.get(key) == about[key] for key in about)), None)

    def add(self, pool: str, stage: str, row: Row) -> None:
        """Adds a row and writes all."""
        self.pools.setdefault(pool, {key: [] for key in self._fields})[stage].append(row)
        words = " ".join(str(row[name]) for name in self._fields[stage] if row[name] is not None)
        print(f"{pool:10} seed {row['seed']}  {stage:10} {words:90} {row['share']:.4f} "
              f"agreement {row['agreement']:.4f} {row['cpu_s']:.0f} s", flush=True)  # fmt: skip
        write_json(self._path, {
            **self._about,
            **{key: self.ranked(key) for key in self._fields},
            "pools": self.pools,
        })  # fmt: skip

    def ranked(self, stage: str) -> list[Row]:
        """Returns each candidate's means over pools and seeds, the lowest share first."""
        alike: dict[str, list[Row]] = {}
        for row in itertools.chain(*(rows[stage] for rows in self.pools.values())):
            candidate = {name: row[name] for name in self._fields[stage]}
            alike.setdefault(json.dumps(candidate), []).append(row)
        means = [
            json.loads(candidate) | {n: mean(r[n] for r in rows) for n in ("share", "agreement")}
            for candidate, rows in alike.items()
        ]
        return sorted(means, key=lambda row: row["share"])

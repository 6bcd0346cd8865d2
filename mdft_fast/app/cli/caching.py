# SPDX-License-Identifier: Apache-2.0
"""What ``mdft cache`` does."""

from __future__ import annotations

import datetime

from mdft_fast.app.cli.console import say, show_table
from mdft_fast.cache import KINDS, cache_entries, cache_folder, cache_limit, remove


def list_cache() -> None:
    """Prints what the cache holds, by kind."""
    entries = cache_entries()
    rows = []
    for kind, meaning in KINDS.items():
        held = [entry for entry in entries if entry.kind == kind]
        last = f"{datetime.datetime.fromtimestamp(held[-1].used):%Y-%m-%d %H:%M}" if held else "-"
        total = sum(entry.bytes for entry in held)
        rows.append([kind, meaning, f"{len(held):,}", f"{total / 1e6:,.1f}", last])
    total = sum(entry.bytes for entry in entries)
    show_table(["kind", "holds", "entries", "MB", "used last"], rows)
    say(f"{cache_folder()}: {total / 1e6:,.1f} MB of at most {cache_limit() / 1e9:g} GB")


def empty_cache(kinds: list[str]) -> None:
    """Removes the entries of some kinds; prints how many."""
    gone = [entry for entry in cache_entries() if entry.kind in kinds and remove(entry)]
    say(f"removed {len(gone):,} entries, {sum(entry.bytes for entry in gone) / 1e6:,.1f} MB")

# SPDX-License-Identifier: Apache-2.0
"""Writes results into README.md and docs/*.md, from committed JSON alone.

    python -m benchmarks.pages            # rewrites what stands between the markers
    python -m benchmarks.pages --check    # changes nothing; status 1 if a page is out of date

A page holds blocks, each between ``<!-- results:NAME:begin -->`` and ``<!-- results:NAME:end -->``;
without ``NAME:`` it is the page's own. What is not in ``benchmarks/results/`` is left out.
"""

from benchmarks.pages.blocks import BLOCKS, PAGES, outdated, rewritten

__all__ = ["BLOCKS", "PAGES", "outdated", "rewritten"]

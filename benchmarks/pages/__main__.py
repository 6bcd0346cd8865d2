# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.pages``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import pages
from benchmarks.pages import end_to_end, methods, scaling
from benchmarks.pages.results import RESULTS, read
from benchmarks.pictures import RC


def main(argv: list[str]) -> int:
    """Rewrites the pages, or says which one is out of date; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=pages.__doc__)
    parser.add_argument("--check", action="store_true", help="changes nothing")
    parser.add_argument("--draw", action="store_true", help="draws the pictures again, too")
    options = parser.parse_args(argv)
    for path, text in pages.outdated():
        if options.check:
            sys.stderr.write(f"{path.name} is out of date: python -m benchmarks.pages\n")
        else:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.name}\n")
    if options.draw:
        import matplotlib  # an extra

        scaling.draw(read(RESULTS, "scaling_cpu"), RESULTS / "scaling_cpu.png")
        with matplotlib.rc_context(RC):
            methods.draw(read(RESULTS, "methods"), RESULTS / methods.PICTURE)
            end_to_end.draw(read(RESULTS, "end_to_end"), RESULTS / end_to_end.PICTURE)
    return int(options.check and bool(pages.outdated()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

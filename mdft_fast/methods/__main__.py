# SPDX-License-Identifier: Apache-2.0
"""``python -m mdft_fast.methods docs/methods.md`` writes the table of methods into the page."""

import sys
from pathlib import Path

from mdft_fast.files import write_text
from mdft_fast.methods import METHODS, page

if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_text(name, page(Path(name).read_text(encoding="utf-8"), METHODS))

# SPDX-License-Identifier: Apache-2.0
"""``python -m mdft_fast.app.cli``: the same as ``mdft``."""

from mdft_fast.app.cli.entry import main

main()

# SPDX-License-Identifier: Apache-2.0
"""``python -m mdft_fast.cli``: the same as ``mdft``."""

from mdft_fast.cli.app import main

main()

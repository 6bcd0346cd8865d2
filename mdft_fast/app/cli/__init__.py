# SPDX-License-Identifier: Apache-2.0
"""The command line, ``mdft``. Commands import what they need when they run, torch included."""

from mdft_fast.app.cli.commands import app, main

__all__ = ["app", "main"]

# SPDX-License-Identifier: Apache-2.0
"""The command line, ``mdft``: torch is loaded when a command has work to do, not before."""

from mdft_fast.app.cli.commands import app, main

__all__ = ["app", "main"]

# SPDX-License-Identifier: Apache-2.0
"""Where the process ``mdft`` begins and ends: Ctrl-C is one line at any moment of it."""

from __future__ import annotations

import os
import signal
import sys

from mdft_fast.late_imports import LateModule
from mdft_fast.terminal import STOPPED, open_standard_streams

commands = LateModule("mdft_fast.app.cli.commands")  # imports take a while, and may be stopped too


def main() -> None:
    """Runs the command line of this process."""
    try:
        open_standard_streams()
        commands.app()
    except KeyboardInterrupt:  # before the command itself could say so
        os.write(sys.stderr.fileno(), b"stopped\n")
        sys.exit(STOPPED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the interpreter's own end is left

# SPDX-License-Identifier: Apache-2.0
"""The command line, ``mdft``: torch is loaded when a command has work to do, not before."""

from mdft_fast.late_imports import late_names

__getattr__, __dir__, __all__ = late_names(
    __name__,
    {
        "mdft_fast.app.cli.entry": ("main",),
        "mdft_fast.app.cli.commands": ("app",),
        "mdft_fast.app.cli.actions": (
            *("export_model", "measure_model", "show_accuracy", "specialize_run"),
        ),
    },
)

# SPDX-License-Identifier: Apache-2.0
"""``mdft methods``: the table of methods."""

from __future__ import annotations

from mdft_fast.app.cli.console import say


def methods() -> None:
    """Lists what can be made of a pool without learning.

    For each method its kind, what it does, what it needs, where it is from, and its fields with
    their defaults. A recipe names transforms, which act in this order, before λ is learned:

    transform: [{ties: {density: 0.2}}, lines]
    """
    from mdft_fast.methods import METHODS, describe_field, needs, summary
    from mdft_fast.options import options

    for name, method in METHODS.items():
        say(f"{name:<12} {method.kind}: {summary(method)}.")
        for option in options(method):
            say(f"{'':<12} {describe_field(option)}")
        extra = f"; needs {needs(method)}" if method.needs else ""
        say(f"{'':<12} {method.source}{extra}")

# SPDX-License-Identifier: Apache-2.0
"""griffe extension: Sphinx roles of docstrings become links; one that names nothing is an error.

``:func:`merge```, ``:class:`~mdft_fast.data.Task```, ``:meth:`Pool.pack```: a name is looked up
where the docstring stands, as Python would, then among the public names of all doors. What the
API's pages do not show is set as code, without a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc|obj):`(~?)([^`]*)`")
LOGGER = griffe.get_logger("docs/site/roles.py")
UNKNOWN = KeyError, griffe.NameResolutionError, griffe.AliasResolutionError


class Roles(griffe.Extension):
    """Rewrites every docstring of a package, once its modules are loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Visits every object that the package defines."""
        loader.resolve_aliases()
        objects: list[Any] = [pkg]
        doors: dict[str, str] = {}
        for parent in objects:  # grows while it is read
            objects += [member for member in parent.members.values() if not member.is_alias]
            if parent.is_module:
                doors |= {str(name): f"{parent.path}.{name}" for name in parent.exports or ()}
        for parent in objects:
            if parent.docstring:
                text = parent.docstring.value
                parent.docstring.value = ROLE.sub(lambda role: link(role, parent, doors), text)  # noqa: B023


def link(role: re.Match[str], parent: Any, doors: dict[str, str]) -> str:
    """Returns HTML for what a role names, seen from ``parent``."""
    short, name = role.groups()
    first, dot, rest = name.partition(".")
    for resolve in (parent.resolve, doors.__getitem__, str):
        try:
            target = parent.modules_collection[resolve(first) + dot + rest].canonical_path
        except UNKNOWN:
            continue
        label = name.rpartition(".")[2] if short else name
        return f'<autoref identifier="{target}" optional><code>{label}</code></autoref>'
    LOGGER.warning("%s: %s names nothing", parent.path, role[0])
    return role[0]

# SPDX-License-Identifier: Apache-2.0
"""YAML with the scalars of YAML 1.2, so that ``off`` is a word and ``1e-3`` is a number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SCALARS = (  # the more special one first
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), "~nN\0"),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+"), "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+.0123456789"),
)
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own form

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != _MERGE and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(loader: yaml.SafeLoader, node: Any) -> float:
    return float(re.sub(r"\.(?=[iInN])", "", node.value))


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        anchored = re.compile(rf"^(?:{_pattern.pattern})$")
        firsts = ["" if letter == "\0" else letter for letter in _first]
        _class.add_implicit_resolver(_tag, anchored, firsts)
    _class.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def parse(text: str) -> Any:
    """Returns what a YAML text says.

    Raises:
        ValueError: if it is no YAML, in one line with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def render(content: Any, *, one_line: bool = False) -> str:
    """Returns YAML that :func:`parse` reads back to an equal value; keys keep their order."""
    return yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=one_line or None,
        allow_unicode=True,
        width=float("inf") if one_line else 100,
    )


def leaves(content: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every scalar of nested mappings and lists with its key, as ``tasks[0].head.file``."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from leaves(value, f"{at}.{key}" if at else str(key))
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from leaves(value, f"{at}[{i}]")
    else:
        yield at, content

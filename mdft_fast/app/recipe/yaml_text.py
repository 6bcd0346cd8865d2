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
_MOST = 100_000  # values in a text, those that an alias repeats counted each time
_DEEPEST = 50  # mappings and lists in one another
_LARGEST = 1 << 63  # whole numbers below it are what tensors count in


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own form

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _count(node, {}, ())
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            raise _wrong(f"must be {kind}, got {str(node.value)[:40]!r}", node) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(f"must be a mapping, got {str(node.value)[:40]!r}", node)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong("a key must be a word; is it a template's {{ placeholder }}?", key)
            if key.tag != _MERGE and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _wrong(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _count(node: Any, counted: dict[int, int], above: tuple[int, ...]) -> int:
    """Returns how many values a node is with its aliases written out, before any is made."""
    if id(node) in above:
        raise _wrong("an alias must not lie in what it stands for", node)
    if len(above) > _DEEPEST:
        raise _wrong(f"mappings and lists must be at most {_DEEPEST} deep", node)
    if id(node) not in counted:
        inner: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count(part, counted, (*above, id(node))) for part in inner)
        if counted[id(node)] > _MOST:
            raise _wrong(f"must be at most {_MOST:,} values, aliases written out", node)
    return counted[id(node)]


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(loader: yaml.SafeLoader, node: Any) -> float:
    return float(re.sub(r"\.(?=[iInN])", "", node.value))


def _int(loader: yaml.SafeLoader, node: Any) -> int:
    number = int(node.value)
    if abs(number) >= _LARGEST:
        raise _wrong(f"a whole number must be below 2^63, got {node.value[:20]}...", node)
    return number


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        anchored = re.compile(rf"^(?:{_pattern.pattern})$")
        firsts = ["" if letter == "\0" else letter for letter in _first]
        _class.add_implicit_resolver(_tag, anchored, firsts)
    _class.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)


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
    except RecursionError:
        raise ValueError(f"mappings and lists must be at most {_DEEPEST} deep") from None
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

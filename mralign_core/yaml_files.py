"""YAML that a user wrote, read within bounds: size, depth, nodes; every fault is one line that says where."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mralign_core.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_NESTING = 64
"""Levels of nesting; the deepest config has six."""
MAX_NODES = 100_000
"""Values, each counted as often as aliases repeat it: nine lines of aliases can stand for a billion."""


def read_yaml(path: str | Path, what: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file; ``~`` is the home folder.
        what: how to name it in messages, such as ``config file``.

    Raises:
        ConfigError: it is missing, not a readable file of UTF-8 text, too large, or not YAML.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{what} {path} is no file: give a YAML file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{what} {path} has more than {MAX_BYTES >> 10} kB: this can't be what was meant")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} can't be read: {error.strerror}") from None
    return parse_yaml(text, f"{what} {path}")


def parse_yaml(text: str, what: str) -> Any:
    """Read YAML text; ``what`` names it in messages.

    Raises:
        ConfigError: it is not YAML, names a key of a mapping twice, refers to itself, or is nested or repeated
            beyond the limits.

    Example:
        >>> parse_yaml("[1, {a: b}]", "here")
        [1, {'a': 'b'}]
    """
    try:
        root = yaml.compose(text, _Loader)
        _measure(root, what)
        return yaml.load(text, _Loader)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{what} is nested deeper than {MAX_NESTING} levels") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {_in_one_line(error)}") from None
    except ValueError as error:  # such as a date that the calendar lacks
        raise ConfigError(f"{what} has a value that can't be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML libraries silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _measure(root: yaml.Node | None, what: str) -> None:
    """Refuse a document whose aliases make it endless, or as large as nobody writes.

    Raises:
        ConfigError: it is.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MAX_NESTING:
            raise RecursionError
        if id(node) in open_nodes:
            raise ConfigError(f"{what} refers to itself (line {node.start_mark.line + 1})")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(inner, depth + 1) for inner in _inner(node))
            open_nodes.remove(id(node))
        if sizes[id(node)] > MAX_NODES:
            raise ConfigError(f"{what} stands for more than {MAX_NODES:,} values, aliases counted each time")
        return sizes[id(node)]

    if root is not None:
        size(root, 0)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _in_one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(problem.split())

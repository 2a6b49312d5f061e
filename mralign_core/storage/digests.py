"""Digests of files, folders, values and source code: what cache keys are made of."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from mralign_core.errors import ArtifactError
from mralign_core.storage.artifact import FileEntry, content_digest
from mralign_core.storage.source_cache import Known, SourceCache, file_of_sources

UNRELATED = ("config", "errors", "storage")
"""Parts of the package that can't change what a stage computes: config fields enter a key by value."""
_parsing = threading.Lock()
"""CPython 3.11 raises a SystemError when two threads build a syntax tree at once (its issue 106905); goes with 3.11."""


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_entries(directory: Path) -> dict[str, FileEntry]:
    """Digest and size of every file under a folder, by its relative path."""
    return {
        path.relative_to(directory).as_posix(): FileEntry(sha256=file_sha256(path), size=path.stat().st_size)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def tree_digest(directory: Path) -> str:
    """Content digest of a folder: the ``sha256`` an artifact with these files would get."""
    return content_digest(directory_entries(directory))


def key_of(**parts: Any) -> str:
    """Hex sha256 of the parts as canonical JSON; pydantic models count as their JSON values.

    >>> key_of(a=1, b=[2]) == key_of(b=[2], a=1)
    True

    Raises:
        TypeError: a part has no canonical JSON form.
        ValueError: a part holds NaN or infinity.
    """
    text = json.dumps(
        parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_json_value
    )
    return hashlib.sha256(text.encode()).hexdigest()


def row_digests(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The digest of each row's values in some columns, in the order of the rows."""
    return [key_of(**row) for row in frame[list(columns)].to_dict("records")]


def _json_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a cache key can't be made of {type(value).__name__} {value!r:.80}: give its JSON form")


@functools.cache  # a file edited during a run is not the code that runs
def source_digest(module: str, without: tuple[str, ...] = ()) -> str:
    """Digest of a module's code and of every module of its package that it imports, directly or not.

    Comments, docstrings and layout don't count; prompt files (``*.md``) beside a module of a sub-package do.
    Left out are the package's own ``__init__``, its parts named in ``UNRELATED``, and dynamic imports.

    Args:
        module: dotted name, such as ``mralign_core.method.transitions``.
        without: modules and folders of them that are imported and not used, left out with all that only they import.

    Raises:
        ArtifactError: there is no such module.
    """
    files = module_closure(module, without)
    folders = {path.parent for name, path in files.items() if name.count(".") > 1 or path.name == "__init__.py"}
    package = module.partition(".")[0]
    lines = [f"{name} {_read_source(path, name, package).code}\n" for name, path in files.items()]
    _CACHE.keep()
    lines += [f"{folder.name}/{path.name} {file_sha256(path)}\n" for folder in folders for path in folder.glob("*.md")]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@functools.cache
def function_digest(function: Callable[..., Any]) -> str:
    """Digest of a function's code and of all that it names of its package, directly or not, without decorators.

    Its package is the folder of its module; what is in folders of that one is not followed. Of a function that is not
    defined at the top level of its module, the text counts.
    """
    reached = function_closure(function)
    if not reached:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    code = [ast.unparse(reached[place]) for place in sorted(reached, key=lambda place: (place[0].name, place[1]))]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def function_closure(function: Callable[..., Any]) -> dict[tuple[Path, str], ast.AST]:
    """File and name → definition, of a function and of all that it names of the folder of its module, without
    decorators and docstrings; nothing where it is not defined at the top level of its module.
    """
    reached: dict[tuple[Path, str], ast.AST] = {}
    queue = [(Path(inspect.getsourcefile(function) or ""), function.__name__)]
    while queue:
        path, name = queue.pop()
        defined, beside = _definitions(path), _imports_from_beside(path)
        if name in beside:
            queue.append(beside[name])
        elif name in defined and (path, name) not in reached:
            reached[path, name] = defined[name]
            queue += [(path, each.id) for each in ast.walk(defined[name]) if isinstance(each, ast.Name)]
    return reached


@functools.cache
def _imports_from_beside(path: Path) -> dict[str, tuple[Path, str]]:
    """Name that a module imports from another of its folder → the file, and the name there."""
    found: dict[str, tuple[Path, str]] = {}
    for node in ast.walk(_parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.count(".") == 1:
            other = path.with_name(f"{node.module.partition('.')[2]}.py")
            if node.module.partition(".")[0] == path.parent.name and other.is_file():
                found |= {alias.asname or alias.name: (other, alias.name) for alias in node.names}
    return found


@functools.cache
def _definitions(path: Path) -> dict[str, ast.AST]:
    """What a module defines at its top level, by name, without decorators and docstrings."""
    found: dict[str, ast.AST] = {}
    for node in _WithoutDocstrings().visit(_parse(path.read_bytes())).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = []
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            found |= dict.fromkeys(names, node)
    return found


@functools.cache
def module_closure(module: str, without: tuple[str, ...] = ()) -> dict[str, Path]:
    """Dotted name → file of a module and of all it imports from the same package, but for some modules.

    Raises:
        ArtifactError: there is no such module.
    """
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)
    root = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if root is None or module == package or _module_file(root, module) is None:
        raise ArtifactError(f"no source of module {module!r}: give a name such as 'mralign_core.method.transitions'")
    found: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _module_file(root, name)
        if path is None or name in found or name == package or name.split(".")[1] in UNRELATED:
            continue
        if any(f"{name}.".startswith(f"{left_out}.") for left_out in without):
            continue
        found[name] = path
        queue += [name.rpartition(".")[0], *_read_source(path, name, package).imports]
    return found


def _module_file(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split(".")[1:])
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


FORM = 2
"""Raised by hand where :func:`_read_source` comes to something else for the same source: what was kept is then left."""
_CACHE = SourceCache(file_of_sources(Path(__file__).parent, FORM))


@functools.cache
def _read_source(path: Path, name: str, package: str) -> Known:
    """What counts of a module of a package."""
    source = path.read_bytes()
    module, content = f"{name} {path.name}", hashlib.sha256(source).hexdigest()
    known = _CACHE.get(module)
    if known is None or known.content != content:
        tree = _parse(source)
        imports = sorted(set(_imported(tree, name if path.name == "__init__.py" else name.rpartition(".")[0], package)))
        known = Known(content, hashlib.sha256(_code(tree).encode()).hexdigest(), imports)
        _CACHE.put(module, known)
    return known


def _imported(tree: ast.Module, inside: str, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == package)
        elif isinstance(node, ast.ImportFrom):
            parents = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            if base.partition(".")[0] == package:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops bare strings: docstrings of modules, classes, functions and attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Drop an expression statement that is only a string."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def _code(tree: ast.Module) -> str:
    """A module's code in its normal form; the tree is no longer what it was."""
    return ast.unparse(_WithoutDocstrings().visit(tree))


def _parse(source: bytes) -> ast.Module:
    with _parsing:
        return ast.parse(source)

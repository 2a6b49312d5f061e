"""The rooms of the architecture: imports go one way, and the README shows the real tree."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("mralign_core", "tasks", "flows", "deployments")
MAY_IMPORT = {
    "mralign_core": {"mralign_core"},
    "tasks": {"tasks", "mralign_core"},
    "flows": {"flows", "tasks", "mralign_core"},
    "deployments": {"deployments", "flows", "tasks", "mralign_core"},
}
"""Which rooms a room may import."""
PURE = {"numpy", "torch"}
"""All that ``mralign_core/method`` may import besides the standard library, itself and the names of errors."""
OWN = ("mralign_core.method.", "mralign_core.errors.")


def imported(source: str, package: str) -> set[str]:
    """Dotted names that a module imports anywhere in it, relative ones made absolute."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def wrong_room(source: str, package: str) -> set[str]:
    """Imports that leave a room in a direction it may not look."""
    room = package.partition(".")[0]
    forbidden = set(ROOMS) - MAY_IMPORT[room] | {"tests", "benchmarks"}
    if room == "mralign_core":
        forbidden.add("prefect")
    return {name for name in imported(source, package) if name.partition(".")[0] in forbidden}


def impure(source: str, package: str) -> set[str]:
    """Imports that a pure function of the method has no use for."""
    allowed = PURE | sys.stdlib_module_names
    return {
        name
        for name in imported(source, package)
        if not f"{name}.".startswith(OWN) and name.partition(".")[0] not in allowed
    }


COMPUTATIONS = {"isin", "query", "groupby", "concat", "merge", "pivot_table", "drop_duplicates", "agg", "apply"}
"""Methods of a frame that decide about data."""


def computing(source: str) -> set[str]:
    """Computations on frames: their methods, and arithmetic on a column."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in COMPUTATIONS:
            found.add(node.attr)
        elif isinstance(node, ast.BinOp):
            sides = [side for side in (node.left, node.right) if isinstance(side, ast.Subscript)]
            columns = [s for s in sides if isinstance(s.slice, ast.Constant) and isinstance(s.slice.value, str)]
            found |= {ast.unparse(node) for _ in columns}
    return found


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    assert modules(room), f"{room}/ has no modules"
    wrong = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in modules(room)
        if (names := wrong_room(path.read_text(encoding="utf-8"), package_of(path)))
    }
    assert not wrong, f"{room} may import {sorted(MAY_IMPORT[room])} only: {wrong}"


def test_the_method_is_pure():
    wrong = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in modules("mralign_core/method")
        if (names := impure(path.read_text(encoding="utf-8"), package_of(path)))
    }
    assert not wrong, f"mralign_core/method may import the standard library, numpy and torch only: {wrong}"


def test_tasks_compute_nothing():
    """A decision about data that stands in ``tasks/`` would be in no key; those of the core are in theirs."""
    wrong = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in modules("tasks")
        if (names := computing(path.read_text(encoding="utf-8")))
    }
    assert not wrong, f"tasks/ reads, calls the core and writes; move this into mralign_core: {wrong}"


@pytest.mark.parametrize(
    "line", ["a[a['x'].isin(b)]", "a.query('x')", "a.groupby('x')", "pd.concat(a)", "a.merge(b)", "a['x'] * 2"]
)
def test_a_computation_is_found(line):
    assert computing(line)


def test_glue_is_none():
    assert not computing(
        "rows = store.read_table(ref, 'x.parquet')\ncounts = {**a, 'n': len(rows)}\nfirst = rows[0] - 1"
    )


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("mralign_core.training", "from prefect import flow"),
        ("mralign_core", "import prefect.cache_policies"),
        ("mralign_core", "import tasks.engine.last_run"),
        ("tasks", "from flows.pipeline import pipeline"),
        ("tasks", "def late():\n    import flows.commands.cli"),
        ("flows", "from deployments import serve"),
        ("tasks", "from tests.pocket_store import pocket"),
    ],
)
def test_a_wrong_arrow_is_found(package, line):
    assert wrong_room(line, package)


@pytest.mark.parametrize(
    "line", ["import pandas", "from mralign_core.config import Section", "from ..config import Section"]
)
def test_an_impure_import_is_found(line):
    assert impure(line, "mralign_core.method")


SLOW_IMPORTS = {"torch", "transformers", "peft", "accelerate", "litellm", "scipy", "datasets", "s3fs", "aiobotocore"}
"""Libraries that take seconds to import, and that a run which finds everything in a folder has no use for."""


def packages_behind(modules: str) -> set[str]:
    script = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_run_that_finds_everything_imports_what_it_needs_only():
    found = SLOW_IMPORTS & packages_behind("flows.commands.cli, flows.pipeline")
    assert not found, f"import these inside the functions that use them: {found}"


def test_a_command_starts_without_what_reads_tables():
    found = (SLOW_IMPORTS | {"pandas", "pyarrow", "duckdb", "prefect"}) & packages_behind("flows.commands.cli")
    assert not found, f"import these inside the commands that use them: {found}"


def test_right_arrows_pass():
    assert not wrong_room("from flows.pipeline import pipeline\nimport prefect", "deployments")
    assert not wrong_room("from .caching import Work\nfrom prefect import task", "tasks")
    assert not impure("import math\nimport torch.nn\nfrom .traces import split", "mralign_core.method")


SHARED_NAMES = {
    "logger": "each module's own, by Python's convention",
}
"""Public names that may stand in several rooms of the core, with the reason."""


def public_names(source: str) -> set[str]:
    """Names of a module's own public functions, classes and constants; type variables are its own affair."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and "TypeVar" not in ast.unparse(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def names_in_two_rooms(sources: dict[str, str]) -> dict[str, list[str]]:
    """Public names that modules of different rooms define, and those modules; a module in no folder is its own room.

    Args:
        sources: path in ``mralign_core`` → source.
    """
    places: dict[str, list[str]] = {}
    for path, source in sources.items():
        for name in public_names(source):
            places.setdefault(name, []).append(path)
    return {name: paths for name, paths in places.items() if len({path.partition("/")[0] for path in paths}) > 1}


def test_no_public_name_stands_in_two_rooms_of_the_core():
    core = ROOT / "mralign_core"
    sources = {path.relative_to(core).as_posix(): path.read_text(encoding="utf-8") for path in modules("mralign_core")}
    twice = names_in_two_rooms(sources)
    wrong = {name: paths for name, paths in twice.items() if name not in SHARED_NAMES}
    assert not wrong, f"one of each pair needs a name that says what sets it apart: {wrong}"
    assert set(SHARED_NAMES) <= set(twice), "an exception is no longer needed"


def test_a_name_in_two_rooms_is_found():
    one, other = "def fit(): ...\nLIMIT: int = 1\n_x = 2", "class fit: ...\nResult = TypeVar('Result')\n_x = 3"
    assert names_in_two_rooms({"method/a.py": one, "training/b.py": other}) == {"fit": ["method/a.py", "training/b.py"]}
    assert not names_in_two_rooms({"method/a.py": one, "method/b.py": one})
    assert names_in_two_rooms({"addresses.py": "LIMIT = 1", "method/a.py": one}).keys() == {"LIMIT"}


def test_the_core_says_weights_of_segments_and_implicit_reward_of_kto():
    """Two things were called rewards; the stage, its section and its flow are ``reward``, in the singular.
    TRL's curves, such as ``rewards/chosen``, have the names that they have."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in modules("mralign_core")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"(?<!implicit[ _])rewards(?!/)|(?<!implicit_)reward_(positive|negative)", line, re.IGNORECASE)
    ]
    assert not wrong, f"call them segment weights, or implicit rewards: {wrong}"


def readme_tree() -> str:
    """The fenced block of the README that draws the tree."""
    readme = ROOT / "README.md"
    assert readme.is_file(), "there is no README.md"
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    trees = [block for block in blocks if "flows/" in block and "tasks/" in block]
    assert trees, "README.md has no fenced block that draws the tree, with lines for flows/ and tasks/"
    return trees[0]


def tree_paths(tree: str) -> list[str]:
    """Paths that a tree's lines name: the first word of a line, under the folders it is indented below."""
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        entry = re.match(r"^([\s│├└─]*)([\w.][\w./-]*)", line)
        if not entry:
            continue
        depth, name = len(entry[1]), entry[2]
        folders = [(indent, folder) for indent, folder in folders if indent < depth]
        path = "".join(folder for _, folder in folders) + name
        paths.append(path)
        if name.endswith("/"):
            folders.append((depth, name))
    return paths


def test_tree_paths_follow_the_indentation():
    tree = "README.md      what it is\nflows/         order\n  pipeline.py  the loop\ntasks/\n├── caching.py"
    assert tree_paths(tree) == ["README.md", "flows/", "flows/pipeline.py", "tasks/", "tasks/caching.py"]


def test_the_readme_shows_the_real_graph():
    from tasks.engine.graph import mermaid

    assert mermaid().strip() in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "put there what `mralign graph` prints"
    )


def test_the_readme_shows_the_real_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {name.partition("/")[0] for name in listed.stdout.splitlines()} - {"README.md", ".gitignore"}
    shown = tree_paths(readme_tree())
    gone = [path for path in shown if not (ROOT / path).exists()]
    assert not gone, f"the README's tree names what is not there: {gone}"
    missing = tracked - {path.partition("/")[0] for path in shown}
    assert not missing, f"the README's tree lacks these top-level entries: {sorted(missing)}"


def test_no_two_test_files_have_one_name():
    """pytest imports them by it, and can't collect the second."""
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    repeated = sorted(name for name, count in counts.items() if count > 1)
    assert not repeated, f"test files that need names of their own: {repeated}"

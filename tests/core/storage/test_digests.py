"""Digests: cache keys change with what can change a result, and with nothing else."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mralign_core.errors import ArtifactError
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage import ArtifactRef, digests, file_sha256, key_of, tree_digest
from mralign_core.storage.digests import source_digest
from mralign_core.storage.source_cache import SourceCache

FILES = {
    "__init__.py": '"""The package."""\n__version__ = "1"\n',
    "config.py": "LIMIT = 1\n",
    "math/__init__.py": '"""Maths."""\n',
    "math/sums.py": (
        '"""Sums."""\nfrom toypackage.config import LIMIT\nfrom toypackage.math import products\n\n\n'
        'def add(x):\n    """Add."""\n    return products.times(x, 1) + LIMIT  # why\n'
    ),
    "math/products.py": "from . import powers as p\n\n\ndef times(x, y):\n    return p.power(x * y)\n",
    "math/powers.py": "def power(x):\n    from toypackage import words\n\n    return words.first(x)\n",
    "math/unused.py": "X = 1\n",
    "math/prompt.md": "Label the segments.\n",
    "words.py": "def first(x):\n    return x\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "toypackage"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield folder
    sys.modules.pop("toypackage", None)


def forget():
    """What a new process does: the code is read again."""
    for each in (digests.source_digest, digests.module_closure, digests._read_source):
        each.cache_clear()


def edit(package, name, old, new):
    text = (package / name).read_text()
    assert old in text
    (package / name).write_text(text.replace(old, new))
    forget()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("math/sums.py", "x, 1", "x, 2"),
        ("math/products.py", "x * y", "x + y"),
        ("math/powers.py", "first(x)", "first(-x)"),
        ("words.py", "return x", "return 2 * x"),
        ("math/__init__.py", '"""Maths."""', "Y = 1"),
        ("math/prompt.md", "Label", "Name"),
    ],
)
def test_source_digest_changes_with_code_that_is_used(package, name, old, new):
    before = source_digest("toypackage.math.sums")
    edit(package, name, old, new)
    assert source_digest("toypackage.math.sums") != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("math/sums.py", "  # why", "  # another reason"),
        ("math/sums.py", '"""Add."""', '"""Add one."""'),
        ("math/sums.py", "\n\n\ndef", "\n\n\n\ndef"),
        ("math/products.py", "x * y", "(x*y)"),
        ("math/unused.py", "1", "2"),
        ("config.py", "1", "2"),
        ("__init__.py", '"1"', '"2"'),
    ],
)
def test_source_digest_ignores_what_cannot_change_a_result(package, name, old, new):
    before = source_digest("toypackage.math.sums")
    edit(package, name, old, new)
    assert source_digest("toypackage.math.sums") == before


def test_what_is_left_out_counts_no_more_and_what_only_it_imports(package):
    whole = source_digest("toypackage.math.sums")
    before = source_digest("toypackage.math.sums", ("toypackage.math.powers",))
    edit(package, "words.py", "return x", "return 2 * x")
    assert source_digest("toypackage.math.sums", ("toypackage.math.powers",)) == before
    assert source_digest("toypackage.math.sums") != whole


def test_of_a_function_all_counts_that_it_names_in_its_folder(package):
    import toypackage.math.sums as sums

    before = digests.function_digest(sums.add)
    for name, old, new, counts in (
        ("math/sums.py", '"""Add."""', '"""Add two."""', False),
        ("math/unused.py", "X = 1", "X = 2", False),
        ("math/sums.py", "x, 1", "x, 2", True),
    ):
        edit(package, name, old, new)
        digests.function_digest.cache_clear()
        digests._definitions.cache_clear()
        assert (digests.function_digest(sums.add) != before) == counts
    for name in [name for name in sys.modules if name.startswith("toypackage")]:
        sys.modules.pop(name)


def test_source_digest_tells_modules_apart(package):
    assert source_digest("toypackage.math.sums") != source_digest("toypackage.math.products")


def test_source_digest_needs_a_module_with_source():
    for name in ("mralign_core.no_such_module", "mralign_core", "no_such_package.module", "sys"):
        with pytest.raises(ArtifactError, match=name):
            source_digest(name)
    assert source_digest("mralign_core.schemas.questions") == source_digest("mralign_core.schemas.questions")


def test_key_depends_on_values_not_on_their_order():
    ref = ArtifactRef(uri="file:///s", stage="reward", key="k", sha256="0" * 64)
    assert key_of(a={"x": 1, "y": 2}, b=ref) == key_of(b=ref, a={"y": 2, "x": 1})
    assert key_of(a=ref) == key_of(a=ref.model_dump())
    assert len({key_of(a=1), key_of(a=2), key_of(a="1"), key_of(a=[1]), key_of(b=1), key_of(a=None)}) == 6


def test_key_refuses_values_without_one_json_form():
    with pytest.raises(TypeError, match="Table"):
        key_of(table=SEGMENT_WEIGHTS)
    with pytest.raises(ValueError, match="JSON"):
        key_of(x=float("nan"))


def test_tree_digest_sees_names_and_contents_only(tmp_path):
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / ("y" if folder == "c" else "x")).write_text("2" if folder == "d" else "1")
    digest = {folder: tree_digest(tmp_path / folder) for folder in "abcd"}
    assert digest["a"] == digest["b"]
    assert len(set(digest.values())) == 3
    # sha256 of "1", and of the line "sub/x <that> 1"
    one = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert file_sha256(tmp_path / "a" / "sub" / "x") == one
    (tmp_path / "line").write_text(f"sub/x {one} 1\n")
    assert digest["a"] == file_sha256(tmp_path / "line")


class Finalised:
    """Garbage whose finaliser lets another thread run in the middle of whatever collects it."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        for _ in range(200):
            pass


def test_threads_may_ask_for_digests_at_the_same_time(tmp_path, monkeypatch):
    """On Python 3.11 two syntax trees under construction at once raise a SystemError."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    monkeypatch.setattr(digests, "_CACHE", SourceCache(tmp_path / "sources.json"))
    digests._read_source.cache_clear()

    def digest(module):
        [Finalised() for _ in range(500)]
        return source_digest.__wrapped__(module)

    modules = ["mralign_core.estimation", "mralign_core.annotation.annotate", "mralign_core.training.fit"] * 4
    try:
        with ThreadPoolExecutor(4) as threads:
            told = list(threads.map(digest, modules))
    finally:
        sys.setswitchinterval(interval)
    assert told == told[:3] * 4

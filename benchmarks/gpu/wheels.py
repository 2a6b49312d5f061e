"""The packages that the parts need beside torch, transformers, peft and accelerate: found missing, gathered, installed.

They go into a folder of their own, so that nothing of the host's Python is changed, and nothing that is there is
installed again: above all not torch. Versions are those of constraints.txt.

``python3 -m benchmarks.gpu.wheels .whl --python 3.12`` gathers all of them as wheels, for a host without an index.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ("torch", "transformers", "peft", "accelerate")
"""What the host must have."""
NEEDED = {
    # config, tables and their contracts
    "annotated-types": "annotated_types",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "typing-inspection": "typing_inspection",
    "pandas": "pandas",
    "python-dateutil": "dateutil",
    "six": "six",
    "pandera": "pandera",
    "typeguard": "typeguard",
    "typing-inspect": "typing_inspect",
    "mypy-extensions": "mypy_extensions",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    # the store and its checkpoints
    "botocore": "botocore",
    "jmespath": "jmespath",
    "urllib3": "urllib3",
    "tenacity": "tenacity",
    "pyarrow": "pyarrow",
    # curves, which a training in several processes has
    "tensorboardX": "tensorboardX",
    "protobuf": "google.protobuf",
    # TRL
    "trl": "trl",
    "datasets": "datasets",
    "dill": "dill",
    "multiprocess": "multiprocess",
    "xxhash": "xxhash",
    "requests": "requests",
    "charset-normalizer": "charset_normalizer",
    "aiohttp": "aiohttp",
    "aiohappyeyeballs": "aiohappyeyeballs",
    "aiosignal": "aiosignal",
    "attrs": "attr",
    "frozenlist": "frozenlist",
    "multidict": "multidict",
    "propcache": "propcache",
    "yarl": "yarl",
}
"""Distribution → the module by which it is found. Each one's own needs are named too: nothing is resolved."""
OPTIONAL = ("bitsandbytes",)
"""Installed where its wheel was gathered, and never fetched unasked: 60 MB for the 4-bit training alone."""
PLATFORMS = [f"manylinux{each}_x86_64" for each in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")]
LOOK = """
import importlib.metadata, importlib.util, json, re, sys
sys.path.insert(1, sys.argv[1])
def numbers(version):
    return [int(number) for number in re.findall("[0-9]+", version)[:3]]
def is_there(name, module, least):
    try:
        if importlib.util.find_spec(module) is None:
            return False
        return numbers(importlib.metadata.version(name)) >= numbers(least)
    except importlib.metadata.PackageNotFoundError:
        return True
    except ModuleNotFoundError:
        return False
print(json.dumps([name for name, *rest in json.loads(sys.argv[2]) if not is_there(name, *rest)]))
"""
"""A package without metadata is taken as it is."""
PATIENCE = ("--retries", "1", "--timeout", "5")
"""No limit counts pip's time, and by default it asks an index that is out of reach six times, 15 seconds each. It says
why only of a request that it repeats, so once it must."""
BROKEN, UNREACHABLE = "after connection broken by", "the package index can't be reached"
"""What pip says of a connection, and what is said of it here."""
TOGETHER = {"pydantic": "pydantic-core"}
"""Where the first is too old, the second is that of another version."""


def missing(python: str, site: Path) -> list[str]:
    """Distributions that neither a Python nor a folder beside it has, or not new enough for pyproject.toml."""
    least = least_versions()
    asked = json.dumps([(name, module, least.get(_normal(name), "0")) for name, module in NEEDED.items()])
    reply = subprocess.run([python, "-c", LOOK, str(site), asked], stdout=subprocess.PIPE, text=True, check=True)
    absent = set(json.loads(reply.stdout))
    absent |= {other for name, other in TOGETHER.items() if name in absent}
    return [name for name in NEEDED if name in absent]


def least_versions() -> dict[str, str]:
    """The lower bounds of pyproject.toml, by distribution."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {_normal(name): version for name, version in re.findall(r'^    "([\w.-]+)[>=]=([\d.]+)', text, re.MULTILINE)}


def install(python: str, site: Path, wheels: Path) -> str:
    """Install what is missing into a folder, from wheels where there are some, from the index otherwise.

    Returns:
        What is wrong, in words; empty where nothing is missing any more.
    """
    brought = [name for name in OPTIONAL if [*wheels.glob(f"{name}-*.whl")] and not (site / name).is_dir()]
    if not (names := [*missing(python, site), *brought]):
        return ""
    print(f"installing {len(names)} small packages into {site}: {', '.join(names)}", flush=True)
    why = _pip(python, site, wheels, names)
    if not why:
        return ""
    if why == UNREACHABLE:  # one by one each would wait for the same
        problems = dict.fromkeys(names, why)
    else:
        problems = {name: problem for name in names if (problem := _pip(python, site, wheels, [name]))}
    if not problems:
        return ""
    why = next(iter(problems.values()))
    return f"{', '.join(problems)} could not be installed ({why}): gather their wheels into {wheels}, see docs/gpu.md"


def _pip(python: str, site: Path, wheels: Path, names: Sequence[str]) -> str:
    """Install packages; what pip said last where it failed, or :data:`UNREACHABLE`, else nothing."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
        *PATIENCE,
        "--upgrade",
        "--target",
        str(site),
    ]
    command = [python, "-m", "pip", "install", *options, *source, *pinned(names)]
    reply = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if reply.returncode == 0:
        return ""
    if BROKEN in reply.stdout:
        return UNREACHABLE
    return (reply.stdout.strip().splitlines() or [f"exit code {reply.returncode}"])[-1]


def pinned(names: Iterable[str]) -> list[str]:
    """Names with the versions of constraints.txt, where it has one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {_normal(line.partition("==")[0]): line.split()[0] for line in lines if "==" in line}
    return [pins.get(_normal(name), name) for name in names]


def gather(folder: Path, python_version: str, more: Sequence[str], without: Sequence[str]) -> int:
    """Download the wheels of all packages for a Linux host with some Python; pip's exit code."""
    names = [name for name in [*NEEDED, *more] if name not in without]
    platforms = [part for each in PLATFORMS for part in ("--platform", each)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    target = ["--python-version", python_version, "--implementation", "cp", *platforms, "--dest", str(folder)]
    return subprocess.run([*command, *target, *pinned(names)]).returncode


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower().strip()


def main() -> int:
    """Gather wheels; pip's exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.wheels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the wheels go; make gpu looks in .whl")
    parser.add_argument("--python", default="3.12", help="the host's Python (default 3.12)")
    parser.add_argument(
        "--more", nargs="+", default=[], choices=OPTIONAL, help="packages of which only some parts gain"
    )
    parser.add_argument("--without", nargs="+", default=[], help="packages that the host has, such as pyarrow pandas")
    options = parser.parse_args()
    return gather(options.folder, options.python, options.more, options.without)


if __name__ == "__main__":
    sys.exit(main())

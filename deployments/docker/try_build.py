"""Run the steps of the Dockerfile without Docker, each in a clean root of Debian, and then a command in what they made.

::

    sudo debootstrap --variant=minbase --include=python3.11,python3-venv,ca-certificates bookworm /tmp/base
    sudo python -m deployments.docker.try_build --base /tmp/base --folder /tmp/image -- mralign run --config smoke

Debian's Python stands for that of ``python:3.11-slim``. Steps run one after another as Docker would run them, as the
user and with the variables that the file says, and see only files that ``.dockerignore`` lets in. What this can't show:
layers, the pull of the base image, GPUs, and limits that a container engine sets.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.steps import CHECKOUT
from mralign_core.errors import UserError

DOCKERFILE = CHECKOUT / "deployments" / "docker" / "Dockerfile"
IN_ROOT = """
set -eu
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
for folder in $BINDS; do mkdir -p "$ROOT$folder"; mount --bind "$folder" "$ROOT$folder"; done
exec chroot --userspec="$AS" "$ROOT" /usr/bin/env -i "$@"
"""


class StepError(UserError):
    """A step is unknown here, or has failed."""


@dataclass
class Stage:
    """What the steps of one ``FROM`` have made so far."""

    root: Path
    workdir: str = "/"
    user: str = "0:0"
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def read_steps(path: Path = DOCKERFILE) -> Iterator[tuple[str, str]]:
    """Each step of a Dockerfile: its instruction, and the rest of it in one line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    for step in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if step.strip():
            instruction, _, rest = step.strip().partition(" ")
            yield instruction.upper(), rest.strip()


def context_files(checkout: Path = CHECKOUT) -> list[Path]:
    """The files that ``.dockerignore`` lets into the build, relative to the checkout.

    Raises:
        StepError: the file uses more than this reads: ``*``, then names that are let in, then ``**/`` patterns.
    """
    first, *lines = [
        line for line in (checkout / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    let_in = [line[1:] for line in lines if line.startswith("!")]
    left_out = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    if first != "*" or len(let_in) + len(left_out) != len(lines):
        raise StepError(".dockerignore: expected `*`, then names with `!`, then patterns with `**/`")
    found = [
        path
        for name in let_in
        for path in ((checkout / name).rglob("*") if (checkout / name).is_dir() else [checkout / name])
    ]
    relative = sorted(path.relative_to(checkout) for path in found if path.is_file())
    return [
        path for path in relative if not any(fnmatch.fnmatch(part, each) for part in path.parts for each in left_out)
    ]


class Builder:
    """Runs the steps.

    Args:
        base: root of a Debian with Python, which stays as it is.
        folder: where the roots of the stages go; it must not be there.
        environment: variables of this host for every step, such as settings of pip.
        binds: folders of this host that every step sees.
    """

    def __init__(self, base: Path, folder: Path, environment: Mapping[str, str], binds: Sequence[str]) -> None:
        self._base, self._folder = base, folder
        self._environment, self._binds = dict(environment), list(binds)
        self._stages: dict[str, Stage] = {}

    def build(self) -> Stage:
        """Run all steps; the last stage is the image."""
        stage = None
        for instruction, rest in read_steps():
            started = time.monotonic()
            if instruction == "FROM":
                stage = self._begin(rest)
            else:
                assert stage
                self._step(stage, instruction, rest)
            print(f"{time.monotonic() - started:7.1f} s  {instruction} {rest[:90]}", flush=True)  # noqa: T201
        assert stage
        return stage

    def _begin(self, rest: str) -> Stage:
        name = rest.split()[-1] if " AS " in rest else "image"
        root = self._folder / name
        subprocess.run(["cp", "-a", str(self._base), str(root)], check=True)
        python = root / "usr/local/bin/python"
        if not python.is_symlink():
            python.symlink_to("/usr/bin/python3.11")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        self._stages[name] = Stage(root)
        return self._stages[name]

    def _step(self, stage: Stage, instruction: str, rest: str) -> None:
        match instruction:
            case "ARG" | "ENV":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
                stage.variables |= {
                    **pairs,
                    **{name: self._environment[name] for name in pairs if name in self._environment},
                }
            case "WORKDIR":
                stage.workdir = rest
                (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = f"{rest}:{rest}"
            case "COPY":
                self._copy(stage, rest.split())
            case "RUN":
                self.run(stage, ["sh", "-c", rest])
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "CMD":
                stage.command = json.loads(rest)
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(rest.partition("CMD ")[2])
            case _:
                raise StepError(f"{instruction} {rest}: this script does not know the instruction")

    def _copy(self, stage: Stage, words: list[str]) -> None:
        *sources, target = words
        into = stage.root / os.path.join(stage.workdir, target).lstrip("/")
        if sources[0].startswith("--from="):
            source = self._stages[sources[0].removeprefix("--from=")].root / sources[1].lstrip("/")
            subprocess.run(
                ["cp", "-a", f"{source}/.", str(into)] if into.is_dir() else ["cp", "-a", str(source), str(into)],
                check=True,
            )
            return
        for path in context_files():
            if sources == ["."] or str(path) in sources:
                to = into / (path if sources == ["."] else path.name)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / path, to)

    def run(self, stage: Stage, command: Sequence[str]) -> None:
        """Run a command in a stage's root, as its user, with its variables.

        Raises:
            StepError: it failed.
        """
        home = "/root" if stage.user == "0:0" else f"/home/{stage.user.partition(':')[0]}"
        variables = {"HOME": home, **self._environment, **stage.variables}
        told = [f"{name}={value}" for name, value in variables.items()]
        in_workdir = ["sh", "-c", f'cd {shlex.quote(stage.workdir)} && exec "$@"', "sh", *command]
        unshared = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", IN_ROOT, "sh"]
        environment = {**os.environ, "ROOT": str(stage.root), "BINDS": " ".join(self._binds), "AS": stage.user}
        done = subprocess.run([*unshared, *told, *in_workdir], env=environment, check=False)
        if done.returncode:
            raise StepError(f"`{shlex.join(command)}` ended with code {done.returncode}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build as the command line says, and run what it names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.docker.try_build", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="root of a Debian that debootstrap has made")
    parser.add_argument("--folder", type=Path, required=True, help="where the roots of the stages go; not there yet")
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE", help="for every step, as settings of pip")
    parser.add_argument("--bind", nargs="*", default=[], metavar="FOLDER", help="of this host, for every step to see")
    parser.add_argument("command", nargs="*", help="to run at the end; else what the image runs")
    chosen = parser.parse_args(arguments)
    try:
        chosen.folder.mkdir(parents=True)
        builder = Builder(chosen.base, chosen.folder, dict(pair.split("=", 1) for pair in chosen.env), chosen.bind)
        image = builder.build()
        builder.run(image, image.healthcheck)
        builder.run(image, [*image.entrypoint, *(chosen.command or image.command)])
    except (UserError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

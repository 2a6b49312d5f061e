"""Try a chat template in a process of its own, with bounded time and memory.

A template is a program that comes with a model: loops in loops run for ever, and one product of a text and a number
takes all memory. jinja2's sandbox bounds neither. What ends here within the bounds is rendered in this project's own
process from then on.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from mralign_core.config import ModelConfig
from mralign_core.errors import ConfigError

CPU_SECONDS = 5
"""For a handful of prompts, which take milliseconds."""
MEMORY_BYTES = 2 << 30
"""On top of what the libraries take."""
WALL_SECONDS = 600
"""For a machine that is busy with other things: loading the libraries takes seconds."""
REFUSED = 3
OUT_OF_MEMORY = re.compile(r"MemoryError|bad_alloc|allocate|memory", re.IGNORECASE)
"""How the last line of a process says so that ended by itself for want of memory."""


def probe_template(path: str | Path, revision: str, section: ModelConfig, instruction: str) -> None:
    """Render prompts of a model with :func:`.check_template.check_rendering` in a bounded process.

    Args:
        path: folder or hub id of the model.
        revision: hub revision.
        section: the model section, which names the family.
        instruction: text before `Question: …` in the prompt.

    Raises:
        ConfigError: as ``check_rendering``, or the template takes too much time or memory, or could not be tried.
    """
    model = section.model_dump(mode="json")
    asked = {"path": str(path), "revision": revision, "model": model, "instruction": instruction}
    command = [sys.executable, "-m", __name__]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=WALL_SECONDS,
            check=False,
            # threads of their own would take address space, which is what is bounded
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"},
        )
    except subprocess.TimeoutExpired:
        ended = None
    if ended is not None and ended.returncode == 0:
        return
    if ended is not None and ended.returncode == REFUSED:
        raise ConfigError(ended.stdout.strip())
    last = ended.stderr.strip().splitlines()[-1:] if ended is not None else []
    if ended is not None and ended.returncode > 0 and not any(OUT_OF_MEMORY.search(line) for line in last):
        raise ConfigError(
            f"model.path {str(path)!r}: its chat template could not be tried: the process for it failed with exit code "
            f"{ended.returncode} {last or ''}: check the installation".rstrip()
        )
    raise ConfigError(
        f"model.path {str(path)!r}: its chat template takes more than {CPU_SECONDS} s or {MEMORY_BYTES >> 20} MiB for "
        f"a plain question: put another into the model's folder, as chat_template.jinja {last or ''}".rstrip()
    )


def _bound() -> None:
    """From here on, so that what the libraries took does not count."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = round(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _load_tokenizer(path: str, revision: str) -> Any:
    """What ``mralign_core.models.load`` has loaded before; to import that takes 2 s, for the models that it loads."""
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True} if Path(path).is_dir() else {"revision": revision or "main"}
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)


def _main() -> int:
    from mralign_core.generation.check_template import check_rendering

    asked = json.load(sys.stdin)
    tokenizer = _load_tokenizer(asked["path"], asked["revision"])
    _bound()
    try:
        check_rendering(tokenizer, ModelConfig.model_validate(asked["model"]), asked["instruction"])
    except ConfigError as error:
        print(error)  # noqa: T201
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())

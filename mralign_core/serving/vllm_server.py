"""A vLLM server of a stage's own, in an environment of its own, since vLLM can't share one with Prefect.

It listens on 127.0.0.1 alone, takes a key that only this process knows, and is told of adapters by vLLM's own API
(:mod:`.adapters`). It can't outlive this process, however that ends (:mod:`mralign_core.processes.keeper`). What it
prints is kept in a file, whose last lines are in the error where it ends.

Written for the arguments of ``vllm serve`` 0.30 to 0.33.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mralign_core.config import VllmConfig
from mralign_core.errors import ConfigError
from mralign_core.llm.request import Reach
from mralign_core.models.adapter_files import vllm_lora_room
from mralign_core.models.locate import ModelLocation
from mralign_core.processes import keeper as keeper_module
from mralign_core.processes.family import MARK
from mralign_core.redaction import redact
from mralign_core.serving.adapters import ServerApi

logger = logging.getLogger("mralign_core.serving")

ASK_EVERY_S = 0.5
NEWS_S = 2.0
"""For the end of a server to be known, once it answers no more."""
SHOWN_LINES, READ_BYTES = 20, 16_384
"""Of what it printed, in the message of an error."""
PORT_ATTEMPTS = 5
"""A port that was free may be another's by the time that the server listens."""
PORT_TAKEN = "address already in use"
OWN = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "PREFECT_API_AUTH_STRING", "VLLM_API_KEY", MARK)
"""Variables of this process that are none of the server's. Without the mark of the family, nobody but the keeper ends
the keeper."""

OnStart = Callable[[int, int, str], None]
"""Told as a server starts: seconds passed, seconds that it may take, and the last line that it printed."""


class ServedBase(NamedTuple):
    """What a server is started for."""

    location: ModelLocation
    name: str
    """Under which the model is served."""
    dtype: str
    lora_rank: int | None
    """Of the adapters to come; None for none."""


class VllmServer:
    """A running server; a context manager, which stops it.

    Args:
        section: environment, GPUs and limits.
        base: the model.
        on_start: told every now and then until it answers.

    Raises:
        ConfigError: there is no vLLM in the environment, it ended while it started, or took too long.
    """

    def __init__(self, section: VllmConfig, base: ServedBase, on_start: OnStart | None = None) -> None:
        self._program = Path(section.environment).expanduser() / "bin" / "vllm"
        if not os.access(self._program, os.X_OK):
            raise ConfigError(
                f"vllm.environment {section.environment!r} has no program {self._program}: make a virtual environment "
                "there and install vLLM into it (docs/samplers.md)"
            )
        self.base = base
        self._section = section
        folder = Path(section.log_folder).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}-{secrets.token_hex(3)}.log"
        self._key = secrets.token_urlsafe(24)
        for _ in range(PORT_ATTEMPTS):
            self._start()
            try:
                self._wait(on_start or (lambda *_: None))
            except BaseException:
                self.close()
                if self._lost_its_port():
                    continue
                raise
            return
        raise ConfigError(f"no port of 127.0.0.1 stayed free for vLLM in {PORT_ATTEMPTS} attempts; see {self.log}")

    @property
    def is_running(self) -> bool:
        """Whether the server is there."""
        return self._keeper.poll() is None

    @property
    def reach(self) -> Reach:
        """Where it is, and its key."""
        return Reach(f"http://127.0.0.1:{self._port}/v1", self._key, self.last_words)

    def last_words(self) -> str:
        """How the server ended; empty while it runs, which is looked at for a moment: a lost connection tells first."""
        try:
            self._keeper.wait(NEWS_S)
        except subprocess.TimeoutExpired:
            return ""
        lines = "".join(f"\n  {line}" for line in self._last_lines())
        return f"vLLM of vllm.environment ended with code {self._keeper.returncode}; the end of {self.log}:{lines}"

    def close(self) -> None:
        """Stop it, and all that it started."""
        self._keeper.terminate()
        try:
            self._keeper.wait(keeper_module.COMMAND_S + 5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        if self._keeper.returncode < 0:  # it was killed, and has ended nothing
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._keeper.pid, signal.SIGKILL)

    def __enter__(self) -> VllmServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._port = _free_port()
        environment = {name: value for name, value in os.environ.items() if name not in OWN}
        environment |= {
            "PATH": f"{self._program.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "VLLM_API_KEY": self._key,  # not on the command line, which every user of the host can read
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        }
        keeper = [sys.executable, "-P", keeper_module.__file__, str(os.getpid())]
        command = [str(self._program), "serve", *self._arguments()]
        logger.info("starting vLLM on port %d; it prints into %s", self._port, self.log)
        with self.log.open("wb") as log:
            self._keeper = subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # which the keeper ends; and Ctrl-C reaches this process alone
            )

    def _arguments(self) -> list[str]:
        section, (path, revision) = self._section, self.base.location
        arguments = [path, "--served-model-name", self.base.name, "--host", "127.0.0.1", "--port", str(self._port)]
        arguments += ["--dtype", self.base.dtype, "--generation-config", "vllm", "--enable-prefix-caching"]
        arguments += ["--tensor-parallel-size", str(section.tensor_parallel_size)]
        arguments += ["--gpu-memory-utilization", str(section.gpu_memory_utilization)]
        if revision:
            arguments += ["--revision", revision, "--tokenizer-revision", revision]
        if section.max_model_len:
            arguments += ["--max-model-len", str(section.max_model_len)]
        if self.base.lora_rank is not None:
            arguments += ["--enable-lora", "--max-loras", "1"]
            arguments += ["--max-lora-rank", str(vllm_lora_room(self.base.lora_rank))]
        return arguments

    def _wait(self, on_start: OnStart) -> None:
        """Wait until the server answers to its key and names its model."""
        api, started = ServerApi(self.reach.api_base, self._key, timeout_s=2.0), time.monotonic()
        limit_s = self._section.start_timeout_s
        while (passed_s := time.monotonic() - started) < limit_s:
            if not self.is_running:
                raise ConfigError(f"{self.last_words()}\nSee vllm.* and model.* of the config")
            if api.answers() and self.base.name in api.names():
                logger.info("vLLM answers after %.0f s", passed_s)
                return
            on_start(int(passed_s), int(limit_s), (self._last_lines() or [""])[-1][:60])
            time.sleep(ASK_EVERY_S)
        lines = "".join(f"\n  {line}" for line in self._last_lines())
        raise ConfigError(
            f"vLLM did not answer within vllm.start_timeout_s {limit_s:g}: raise it, or see why. The end of {self.log}:"
            f"{lines}"
        )

    def _lost_its_port(self) -> bool:
        return any(PORT_TAKEN in line.lower() for line in self._last_lines())

    def _last_lines(self) -> list[str]:
        """What it printed last, without secrets."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - READ_BYTES))
            text = log.read().decode("utf-8", "replace").replace(self._key, "[secret]")
        return redact(text).splitlines()[-SHOWN_LINES:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

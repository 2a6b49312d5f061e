"""A server of a stage's own, from a stand-in for `vllm serve`: it answers in time or says why, and outlives nobody."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mralign_core.config import VllmConfig
from mralign_core.errors import ConfigError
from mralign_core.models.locate import ModelLocation
from mralign_core.serving import vllm_server
from mralign_core.serving.adapters import ServerApi
from mralign_core.serving.vllm_server import ServedBase, VllmServer

STAND_IN = f"""#!{sys.executable}
import http.server, json, os, subprocess, sys, time
arguments = sys.argv[1:]
option = lambda name: arguments[arguments.index(name) + 1]
folder, manner = os.environ["STAND_IN_FOLDER"], os.environ.get("STAND_IN_MANNER", "")
print("INFO loading", flush=True)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # vLLM's engine is a process too
with open(os.path.join(folder, "started.jsonl"), "a") as file:
    file.write(json.dumps([arguments, dict(os.environ), [os.getpid(), engine.pid]]) + "\\n")
if manner == "fails":
    print("torch.OutOfMemoryError: CUDA out of memory, key " + os.environ["VLLM_API_KEY"], flush=True)
    sys.exit(3)
if manner == "hangs":
    print("INFO still compiling", flush=True)
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    log_message = lambda *_: None
    def do_GET(self):
        if self.path == "/v1/crash":
            print("RuntimeError: CUDA error", flush=True)
            os._exit(4)
        is_known = self.headers["authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if is_known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": [{{"id": option("--served-model-name")}}]}}).encode())
if manner == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer((option("--host"), int(option("--port"))), Handler).serve_forever()
"""
BASE = ServedBase(ModelLocation("Qwen/Qwen3-8B", "abc"), "Qwen3-8B-0123456789ab", "bfloat16", 20)


def put_stand_in(environment, folder, monkeypatch):
    """Put the stand-in into a new environment; it tells of its starts in a folder."""
    program = environment / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN_FOLDER", str(folder))
    monkeypatch.setattr(vllm_server, "ASK_EVERY_S", 0.05)


@pytest.fixture
def section(tmp_path, monkeypatch):
    put_stand_in(tmp_path / "venv", tmp_path, monkeypatch)
    return VllmConfig(
        environment=str(tmp_path / "venv"), log_folder=str(tmp_path / "logs"), start_timeout_s=60, max_model_len=4096
    )


def started(tmp_path):
    """Arguments, environment and processes of each start."""
    return [json.loads(line) for line in (tmp_path / "started.jsonl").read_text().splitlines()]


def left_of(pids):
    """Which processes still run after a moment."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        time.sleep(0.1)
    return left


def test_it_is_started_as_the_config_says_with_a_key_of_its_own_and_stopped(section, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:hunter2")
    told = []
    with VllmServer(section, BASE, lambda *said: told.append(said)) as server:
        api_base, key, last_words = server.reach
        assert ServerApi(api_base, key).names() == [BASE.name] and last_words() == ""
        assert not ServerApi(api_base, "another").answers()
    [(arguments, environment, pids)] = started(tmp_path)
    assert arguments[:2] == ["serve", "Qwen/Qwen3-8B"] and key not in arguments and len(key) > 20
    line = f"{' '.join(arguments)} "
    for pair in ("--host 127.0.0.1", "--revision abc", "--dtype bfloat16", "--max-model-len 4096"):
        assert f" {pair} " in line
    assert arguments[-5:] == ["--enable-lora", "--max-loras", "1", "--max-lora-rank", "32"]
    assert environment["PATH"].startswith(f"{section.environment}/bin:")
    assert not {"PREFECT_API_AUTH_STRING", "VIRTUAL_ENV", "PYTHONPATH"} & set(environment)
    assert not left_of(pids) and not server.is_running
    assert told and told[0][1] == 60 and "INFO loading" in server.log.read_text()


def test_one_that_ends_while_it_starts_is_shown_by_its_last_lines_without_its_key(section, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_MANNER", "fails")
    with pytest.raises(
        ConfigError, match=r"(?s)code 3.*logs/.*INFO loading\n  torch\.OutOfMemoryError.*key \[secret\]"
    ):
        VllmServer(section, BASE)
    [(_, _, pids)] = started(tmp_path)
    assert not left_of(pids)


def test_one_that_is_not_there_in_time_is_stopped(section, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_MANNER", "hangs")
    limited = section.model_copy(update={"start_timeout_s": 2.0})
    with pytest.raises(ConfigError, match=r"(?s)vllm\.start_timeout_s 2: .*still compiling"):
        VllmServer(limited, BASE)
    [(_, _, pids)] = started(tmp_path)
    assert not left_of(pids)


def test_one_that_dies_later_says_how(section, tmp_path):
    with VllmServer(section, BASE) as server:
        [(_, _, pids)] = started(tmp_path)
        assert not ServerApi(server.reach.api_base.removesuffix("/v1") + "/v1/crash#", "").answers()
        assert not left_of(pids)
        words = server.reach.last_words()
    assert "code 4" in words and words.endswith("RuntimeError: CUDA error")


def test_a_port_that_another_takes_meanwhile_is_given_up_for_another(section, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports, free_port = [taken.getsockname()[1]], vllm_server._free_port
        monkeypatch.setattr(vllm_server, "_free_port", lambda: ports.pop() if ports else free_port())
        with VllmServer(section, BASE) as server:
            assert server.is_running
    assert len(started(tmp_path)) == 2


def test_one_that_is_deaf_is_killed(section, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_MANNER", "deaf")
    with VllmServer(section, BASE) as server:
        server._keeper.kill()  # and so is one whose keeper is gone
        server._keeper.wait()
        [(_, _, pids)] = started(tmp_path)
        assert not server.is_running
    assert not left_of(pids)


def test_no_server_outlives_a_run_that_is_killed(section, tmp_path):
    script = f"""
import time
from mralign_core.config import VllmConfig
from mralign_core.models.locate import ModelLocation
from mralign_core.serving.vllm_server import ServedBase, VllmServer
server = VllmServer(VllmConfig(**{section.model_dump()!r}), ServedBase(ModelLocation("m", ""), "m-1", "float32", None))
print("ready", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stdout.readline() == "ready\n"
        [(arguments, _, pids)] = started(tmp_path)
        assert len([pid for pid in pids if psutil.pid_exists(pid)]) == 2 and "--enable-lora" not in arguments
        os.kill(run.pid, signal.SIGKILL)
    assert not left_of(pids)


def test_an_environment_without_vllm_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"vllm\.environment .* has no program .*bin/vllm: make a virtual"):
        VllmServer(VllmConfig(environment=str(tmp_path), log_folder=str(tmp_path)), BASE)
    assert list(Path(tmp_path).iterdir()) == []

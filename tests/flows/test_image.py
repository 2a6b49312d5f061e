"""The image, as far as no container engine is needed: what goes in, the entrypoint, the health check.

`python -m deployments.docker.try_build` runs the steps themselves, in minutes.
"""

import http.server
import importlib.metadata
import re
import subprocess
import sys
import threading

import pytest
from packaging.requirements import Requirement

from deployments.docker import try_build
from deployments.steps import CHECKOUT
from tests.ports import free_port

DOCKER = CHECKOUT / "deployments" / "docker"
STEPS = list(try_build.read_steps())


def steps(instruction):
    return [rest for each, rest in STEPS if each == instruction]


def enter(secrets, *command, **variables):
    """Run a command by the entrypoint, with a folder of secrets."""
    environment = {"PATH": "/usr/bin:/bin", "MRALIGN_SECRETS": str(secrets), **variables}
    return subprocess.run(
        [DOCKER / "entrypoint.sh", *command], env=environment, capture_output=True, text=True, check=False
    )


def test_the_image_runs_one_run_at_a_time_as_nobody_special():
    assert steps("USER") == ["mralign"]
    (command,) = steps("CMD")
    assert '"--limit", "1"' in command and '"--with-healthcheck"' in command
    assert "HEALTHCHECK" in dict(STEPS) and "ENTRYPOINT" in dict(STEPS)
    assert any("useradd --uid 10001 " in step for step in steps("RUN"))


def test_what_is_copied_is_let_in():
    let_in = {str(path) for path in try_build.context_files()}
    named = {word for step in steps("COPY") if "--from" not in step for word in step.split()[:-1]} - {"."}
    assert named and named <= let_in


def test_keys_runs_and_environments_stay_out(tmp_path):
    for path in (".dockerignore", "flows/a.py", "deployments/b.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((CHECKOUT / ".dockerignore").read_bytes() if path == ".dockerignore" else b"")
    for path in (".env", "keys.env", ".git/config", ".mralign/store/x", ".venv/y", "flows/__pycache__/a.pyc"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("secret")
    # What .dockerignore names is there, but for files that this folder lacks.
    for name in ("LICENSE", "README.md", "constraints.txt", "prefect.yaml", "pyproject.toml"):
        (tmp_path / name).write_text("")
    found = {str(path) for path in try_build.context_files(tmp_path)}
    assert found == {
        "flows/a.py",
        "deployments/b.json",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "prefect.yaml",
        "pyproject.toml",
    }


def test_pins_for_cuda_are_those_of_the_torch_that_is_installed():
    lines = [line for line in (DOCKER / "constraints-cuda.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"(nvidia|cuda|triton)[a-z0-9-]*==[0-9.]+", line) for line in lines)
    stated = re.search(r"torch ([0-9.]+) of PyPI", (DOCKER / "constraints-cuda.txt").read_text())
    assert stated and importlib.metadata.version("torch").split("+")[0] == stated[1]
    pinned = {
        Requirement(line).name
        for line in (CHECKOUT / "constraints.txt").read_text().splitlines()
        if "==" in line and "#" not in line
    }
    assert not pinned & {Requirement(line).name for line in lines}


def test_secrets_are_files_and_become_variables(tmp_path):
    (tmp_path / "HF_TOKEN").write_text("hf_$(x) 'quoted'\n")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("from the file")
    done = enter(tmp_path, "/usr/bin/env", AWS_SECRET_ACCESS_KEY="")
    told = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert told["HF_TOKEN"] == "hf_$(x) 'quoted'"
    assert told["AWS_SECRET_ACCESS_KEY"] == ""  # what is set stays, also where it is empty


def test_without_secrets_the_command_runs_and_its_code_is_the_end(tmp_path):
    assert enter(tmp_path / "absent", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("name", ["hf-token", "1ST", "a b"])
def test_a_secret_that_no_variable_can_be_named_after_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    done = enter(tmp_path, "true")
    assert done.returncode == 64
    assert f"{tmp_path}/{name}: a secret's file is named like its environment variable" in done.stderr


def health(port):
    """The exit status of the health check beside a process that looks like a worker's, or without one for port 0."""
    looks_like = (
        subprocess.Popen(["sleep", "60"])
        if not port
        else subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "-m", "deployments.worker"])
    )
    code = (
        "import os, psutil, runpy; only = psutil.Process(int(os.environ['ONLY'])); "
        "psutil.process_iter = lambda attributes: [type('P', (), {'info': only.as_dict(attributes)})]; "
        f"runpy.run_path({str(DOCKER / 'healthcheck.py')!r}, run_name='__main__')"
    )
    environment = {"ONLY": str(looks_like.pid), "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    try:
        return subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode
    finally:
        looks_like.kill()
        looks_like.wait()


class Health(http.server.BaseHTTPRequestHandler):
    """A worker's page of health."""

    code = 200

    def do_GET(self):
        self.send_response(self.code if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_container_without_a_worker_is_well():
    assert health(0) == 0


def test_a_container_whose_worker_does_not_answer_is_not_well():
    assert health(free_port()) == 1


@pytest.mark.parametrize(("code", "exit_status"), [(200, 0), (503, 1)])
def test_a_container_is_as_well_as_its_worker_says(code, exit_status):
    with http.server.HTTPServer(("127.0.0.1", 0), type("Page", (Health,), {"code": code})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert health(server.server_port) == exit_status
        server.shutdown()

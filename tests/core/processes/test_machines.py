"""One training on two machines: network namespaces, gloo on the CPU, and one machine that is lost in the middle."""

import os
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mralign_core.config import StorageConfig
from mralign_core.errors import ConfigError
from mralign_core.processes.job_folder import write_job
from mralign_core.processes.machines import MACHINE_RANK, machine_rank
from mralign_core.training.fit import train_adapter
from tests.core.processes.small_job import LONG, small_job
from tests.network_hosts import network

TIMEOUT_S = 800
LAUNCH = """
import logging, sys
from pathlib import Path
from mralign_core.processes.job_folder import read_job
from mralign_core.processes.launch import launch_adapter
from mralign_core.processes.machines import HelpedElsewhere
from mralign_core.training.fit import Watch
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
job = read_job(Path(sys.argv[1]))
try:
    result = launch_adapter(job, Watch(on_progress=lambda step, *_: print("step", step, flush=True)))
    result.metrics.to_parquet(sys.argv[2])
except HelpedElsewhere:
    print("helped", flush=True)
"""


def start(host, rank, folder, job_folder):
    env = {**os.environ, MACHINE_RANK: str(rank), "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCH, job_folder, folder / "metrics.parquet"]
    log = (folder / f"log-{rank}-{time.monotonic_ns()}").open("w+")
    return host.start(*command, env=env, stdout=log, stderr=log), log


def said(log):
    log.seek(0)
    return log.read()


@pytest.mark.soak
def test_machines_train_one_adapter_and_go_on_when_one_is_lost(model_dir, tmp_path):
    with network("node-a", "node-b") as (first, second):
        config = tmp_path / "two-machines.yaml"
        settings = {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "MULTI_GPU",
            "use_cpu": True,
            "num_machines": 2,
            "num_processes": 2,
            "main_process_ip": first.address,
            "main_process_port": 29511,
        }
        config.write_text(yaml.safe_dump(settings))
        job = small_job(
            model_dir,
            tmp_path / "adapter",
            {**LONG, "accelerate_config": str(config)},
            storage=StorageConfig(root=str(tmp_path / "store")),
            key="0" * 64,
        )
        (tmp_path / "job").mkdir()
        write_job(job, tmp_path / "job")

        machines = [start(first, 0, tmp_path, tmp_path / "job"), start(second, 1, tmp_path, tmp_path / "job")]
        deadline = time.monotonic() + TIMEOUT_S
        while "step" not in said(machines[0][1]):
            assert time.monotonic() < deadline and machines[0][0].poll() is None, [said(log) for _, log in machines]
            time.sleep(0.2)
        machines[1][0].kill()  # with all that it has started
        assert machines[0][0].wait(timeout=TIMEOUT_S) == 1
        assert "ChildProcessError" in said(machines[0][1])

        machines = [start(first, 0, tmp_path, tmp_path / "job"), start(second, 1, tmp_path, tmp_path / "job")]
        codes = [process.wait(timeout=TIMEOUT_S) for process, _ in machines]
        assert codes == [0, 0], [said(log) for _, log in machines]
        assert "going on from the checkpoint after step" in said(machines[0][1])
        assert "helped" in said(machines[1][1])

    alone = train_adapter(job.model_copy(update={"directory": tmp_path / "alone", "storage": None}))
    assert alone.counts
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "alone"))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-4, msg=name)


def test_a_machine_is_known_by_its_number(monkeypatch):
    monkeypatch.delenv(MACHINE_RANK, raising=False)
    assert machine_rank() == 0
    monkeypatch.setenv(MACHINE_RANK, "2")
    assert machine_rank() == 2
    monkeypatch.setenv(MACHINE_RANK, "second")
    with pytest.raises(ConfigError, match="MRALIGN_MACHINE_RANK is 'second': say 0 on the first"):
        machine_rank()

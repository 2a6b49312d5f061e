"""Training in the processes of ``accelerate launch``, on the CPU. A launch takes most of its time to import."""

import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mralign_core.config import StorageConfig
from mralign_core.errors import ConfigError, DataError, OutOfMemory
from mralign_core.models.out_of_memory import with_less_memory
from mralign_core.processes.job_folder import read_job, write_job
from mralign_core.processes.launch import (
    _follow,
    launch_adapter,
    launch_reference,
    read_accelerate_config,
    smaller_section,
)
from mralign_core.processes.supervise import Supervisor
from mralign_core.training.fit import Watch, train_adapter
from mralign_core.training.job import ReferenceJob, TrainingJob
from tests.core.processes.small_job import LONG, small_job
from tests.core.processes.test_supervise import address, command, wait_until_gone

__all__ = ["address"]
FOLDER = Path(__file__).parents[3] / "deployments" / "accelerate"
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
CPU = str(FOLDER / "cpu-2proc.yaml")


@pytest.fixture(scope="module")
def job(model_dir, tmp_path_factory):
    """What to train: enough steps that a process can be killed in the middle."""
    return small_job(model_dir, tmp_path_factory.mktemp("adapter"), {**LONG, "accelerate_config": CPU})


def workers_here():
    found = [
        each for each in psutil.Process().children(recursive=True) if "mralign_core.processes.worker" in each.cmdline()
    ]
    return {each.environ()["RANK"]: each for each in found if "RANK" in each.environ()}


def listening_here():
    """Addresses that this test's children can be reached at."""
    sockets = [c for each in psutil.Process().children(recursive=True) for c in each.net_connections("inet")]
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


def launch(job, folder, on_progress, accelerate_config=CPU):
    changes = {
        "train": job.train.model_copy(update={"accelerate_config": accelerate_config}),
        "storage": StorageConfig(root=str(folder / "store")),
        "key": "0" * 64,
        "directory": folder / "adapter",
    }
    return launch_adapter(job.model_copy(update=changes), Watch(on_progress=on_progress))


def test_a_training_whose_process_was_killed_goes_on_and_equals_one_in_this_process(job, tmp_path, caplog, monkeypatch):
    """Killed while the processes share the weights, continued while each has them all."""
    sharded = tmp_path / "fsdp.yaml"
    settings = yaml.safe_load((FOLDER / "fsdp2-4gpu.yaml").read_text()) | {"num_processes": 2, "use_cpu": True}
    sharded.write_text(yaml.safe_dump(settings))
    seen, reachable_at = [], set()
    pids: list[int] = []
    tokens: set[str] = set()
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "mralign:token")

    def kill_the_second(step, steps, _):
        if not pids:
            seen.append((step, steps))
            processes = workers_here()
            reachable_at.update(listening_here())
            tokens.update(each.environ()["PREFECT_API_AUTH_STRING"] for each in processes.values())
            pids.extend(each.pid for each in processes.values())
            processes["1"].kill()

    with pytest.raises(ChildProcessError, match="process 1 ended without a word"):
        launch(job, tmp_path, kill_the_second, str(sharded))
    assert 0 < seen[0][0] < seen[0][1] == 48
    assert len(pids) == 2
    assert not wait_until_gone(pids)
    assert reachable_at == {"127.0.0.1"}
    assert tokens == {""}

    rows = []
    with caplog.at_level("INFO"):
        resumed = launch(job, tmp_path, lambda step, steps, row: rows.append(row))
    assert "going on from the checkpoint after step" in caplog.text
    assert 0 < len(rows) < 48

    alone = train_adapter(job.model_copy(update={"directory": tmp_path / "alone"}))
    assert resumed.counts == alone.counts
    for name in alone.metrics:
        wanted = pytest.approx(alone.metrics[name].tolist(), rel=1e-3, abs=1e-4, nan_ok=True)
        assert resumed.metrics[name].tolist() == wanted, name
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == FILES
    found, expected = (load_file(tmp_path / name / FILES[2]) for name in ("adapter", "alone"))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-4, msg=name)


def follow(script, address, on_progress=None):
    with Supervisor(command(script, address), address) as supervisor:
        return _follow(supervisor, on_progress)


def test_a_users_error_is_raised_as_it_was(address):
    with pytest.raises(DataError, match=r"^trace t1: no weight$"):
        follow('lifeline.send("error", type="DataError", text="trace t1: no weight", traceback="")', address)
    script = 'lifeline.send("error", type="OutOfMemory", text="too long", smaller=dict(seed=7), traceback="")'
    with pytest.raises(OutOfMemory, match="too long") as caught:
        follow(script, address.with_name("second"))
    assert caught.value.smaller == {"seed": 7}


@pytest.mark.parametrize("kind", ["KeyError", "UserError2", "Path"])
def test_any_other_error_is_worth_another_attempt_and_has_its_traceback(address, kind):
    with pytest.raises(ChildProcessError, match=r"process \d failed:\nTraceback"):
        follow(f'lifeline.send("error", type="{kind}", text="?", traceback="Traceback …")', address)


@pytest.mark.parametrize(
    ("ending", "error", "says"),
    [
        ("os.kill(os.getpid(), 9)", ChildProcessError, "process 1 ended without a word"),
        ('lifeline.send("error", type="OutOfMemory", text="full", smaller={}, traceback="")', OutOfMemory, "full"),
    ],
    ids=["killed", "out of memory"],
)
def test_what_one_process_died_of_is_told_though_another_failed_by_it_and_was_heard_first(ending, error, says, address):
    """As where the connection between them closes a moment before the lifeline."""
    script = f"""
there = Path(sys.argv[1]).with_name("there")
if sys.argv[2] == "1":
    there.touch()
    time.sleep(0.5)
    {ending}
while not there.exists():
    time.sleep(0.01)
lifeline.send("error", type="RuntimeError", text="Connection closed by peer", traceback="Connection closed by peer")
lifeline.close()
"""
    with pytest.raises(error, match=says):
        follow(script, address)


def test_processes_that_end_too_early_are_quoted(address):
    failing = [sys.executable, "-c", "print('no such option'); raise SystemExit(3)"]
    with (
        Supervisor(failing, address) as supervisor,
        pytest.raises(ChildProcessError, match=r"ended with code 3; its last lines:(\n.*)*\n  no such option"),
    ):
        _follow(supervisor, None)


def test_progress_records_and_output_reach_this_process(address, caplog):
    script = """
rank = int(sys.argv[2])
lifeline.send("log", name="mralign_core.training", level=20, text="step")
print("printed\\n", end="")  # in one piece: both processes write to one pipe
if rank == 0:
    lifeline.send("progress", values=[1, 2, {"loss": 0.5}])
    lifeline.send("result", counts={"rows": 3})
lifeline.close()
"""
    seen = []
    with caplog.at_level("INFO", logger="mralign_core"):
        assert follow(script, address, lambda *values: seen.append(values)) == {"rows": 3}
    assert seen == [(1, 2, {"loss": 0.5})]
    assert {"step", "process 1: step", "printed"} <= set(caplog.messages)


def test_out_of_memory_starts_again_in_the_way_that_it_names(section):
    tried = []

    def attempt(section):
        tried.append((section.tokens_per_forward, section.gradient_checkpointing))
        if len(tried) == 1:
            raise OutOfMemory("too long", {"tokens_per_forward": 100})
        if len(tried) == 2:
            raise OutOfMemory("too long", {"gradient_checkpointing": "always"})
        if len(tried) == 3:
            raise OutOfMemory("too long")

    with pytest.raises(OutOfMemory):
        with_less_memory(section, attempt, smaller_section)
    assert tried == [(section.tokens_per_forward, "auto"), (100, "auto"), (100, "always")]
    assert with_less_memory(section, lambda section: section.lora_r, smaller_section) == section.lora_r


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_the_projects_files_are_what_accelerate_and_the_worker_take(name):
    settings = read_accelerate_config(str(FOLDER / name))
    assert settings.num_processes == {"cpu-2proc.yaml": 2, "ddp-2machines-8gpu.yaml": 8}.get(name, 4)
    assert settings.use_cpu == name.startswith("cpu")
    assert (settings.distributed_type.value == "FSDP") == name.startswith("fsdp2")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_machines": 2}, "main_process_ip and main_process_port"),
        (
            {"num_machines": 2, "num_processes": 3, "main_process_ip": "10.0.0.1", "main_process_port": 29500},
            "as many processes on each of 2 machines, not 3 in all",
        ),
        ({"mixed_precision": "bf16"}, "mixed_precision bf16"),
        ({"distributed_type": "DEEPSPEED"}, "distributed_type MULTI_GPU or FSDP, not DEEPSPEED"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "fsdp_version 2 and nothing else, not .*1"),
        ({"distributed_type": "NOTHING"}, "no file for `accelerate launch`"),
        ({"num_gpus": 2}, "unknown keys"),
    ],
)
def test_settings_that_would_not_be_followed_are_refused(tmp_path, change, problem):
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(Path(CPU).read_text()) | change))
    with pytest.raises(ConfigError, match=problem):
        read_accelerate_config(str(file))


def test_a_job_comes_out_of_its_folder_as_it_went_in(job, tmp_path):
    for number, whole in enumerate((job, job.model_copy(update={"segment_weights": None, "key": "k", "seed": 7}))):
        folder = tmp_path / str(number)
        write_job(whole, folder)
        read = read_job(folder)
        assert type(read) is TrainingJob and read.model_dump() == whole.model_dump()
        assert read.candidates["completion_ids"].map(list).tolist() == job.candidates["completion_ids"].tolist()
        assert (read.segment_weights is None) == (whole.segment_weights is None) and read.reference is None
    common = {name: getattr(job, name) for name in ReferenceJob.model_fields}
    write_job(ReferenceJob(**common), tmp_path / "reference")
    assert type(read_job(tmp_path / "reference")) is ReferenceJob


@pytest.mark.parametrize("content", [None, "- 1", "{", ""])
def test_a_file_that_is_none_is_refused(tmp_path, content, job):
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_text(content)
    section = job.train.model_copy(update={"accelerate_config": str(file)})
    with pytest.raises(ConfigError, match=r"train\.accelerate_config .*file\.yaml"):
        launch_reference(job.model_copy(update={"train": section}))

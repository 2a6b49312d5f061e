"""A machine that helps another one makes and publishes nothing itself."""

from dataclasses import replace

import pytest

from deployments.steps import CHECKOUT
from mralign_core.errors import ConfigError
from mralign_core.processes.machines import MACHINE_RANK, HelpedElsewhere
from tasks.engine import run
from tasks.engine.run import Work
from tasks.prepare import load_questions
from tasks.train import reference_logps, train_adapter
from tests.pocket_store import small_config

ACCELERATE = CHECKOUT / "deployments" / "accelerate"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HELP_AGAIN_S", 0.0)
    monkeypatch.setenv(MACHINE_RANK, "1")
    return small_config(tmp_path / "store")


def test_it_helps_again_until_the_first_machine_has_published(config, monkeypatch):
    attempts = []

    def help_once(making):
        attempts.append(making.directory)
        if len(attempts) < 3:
            raise ChildProcessError("the first machine was lost")
        with monkeypatch.context() as first:
            first.delenv(MACHINE_RANK)
            load_questions.produce(config)
        raise HelpedElsewhere

    questions = load_questions.work(config)
    shared = replace(questions, artifact=replace(questions.artifact, is_shared=lambda _: True))
    helped = shared.produce(build=help_once)
    assert len(attempts) == 3 and not any(folder.exists() for folder in attempts)
    assert helped.was_cached
    assert load_questions.produce(config).ref == helped.ref


def forbidden(_):
    raise AssertionError("a machine that helps has begun work which is another's")


def test_what_one_machine_makes_is_refused_before_it_is_begun(config):
    with pytest.raises(
        ConfigError, match="MRALIGN_MACHINE_RANK is 1, but questions is made by one machine, and not in"
    ):
        load_questions.work(config).produce(build=forbidden)


@pytest.mark.parametrize("task", [train_adapter, reference_logps])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "is made by one machine"),
        ("cpu-2proc.yaml", "num_machines above 1, which MRALIGN_MACHINE_RANK says, not 1"),
        ("ddp-2machines-8gpu.yaml", ""),
    ],
)
def test_a_training_is_helped_with_where_its_file_says_several_machines(config, task, file, message):
    section = config.train.model_copy(update={"accelerate_config": str(ACCELERATE / file) if file else ""})
    part = {"variant": "kto"} if task is train_adapter else {}
    work = Work(task.artifact, config.model_copy(update={"train": section}), {}, part)
    with pytest.raises(ConfigError, match=message) if message else pytest.raises(AssertionError, match="has begun"):
        work.produce(build=forbidden)

"""A machine that helps another one makes and publishes nothing itself."""

import pytest

from mralign_core.errors import ConfigError
from mralign_core.processes.machines import MACHINE_RANK, HelpedElsewhere
from tasks.engine import run
from tasks.engine.run import Built
from tasks.prepare import load_questions
from tests.pocket_store import small_config


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

    helped = load_questions.work(config).produce(build=help_once)
    assert len(attempts) == 3 and not any(folder.exists() for folder in attempts)
    assert helped.was_cached
    assert load_questions.produce(config).ref == helped.ref


def test_what_one_machine_makes_is_not_helped_with(config):
    with pytest.raises(ConfigError, match="MRALIGN_MACHINE_RANK is set, but questions is made by one machine"):
        load_questions.work(config).produce(build=lambda making: Built())

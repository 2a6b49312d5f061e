"""A person is asked at the terminal of `mralign retrain`, where an embedded server has no page to ask on."""

import os
import pty
import select
import sys

import pytest

from flows.commands.asking import ask_at_terminal
from flows.commands.versions import user_name
from mralign_core.config import RunConfig
from mralign_core.retraining.promotion import Promotion

PROMOTION = Promotion(verdict="PROMOTE", reasons=["Mis fell"], challenger="mr_align-" + 64 * "a", champion="")
COMMAND = "`mralign promote mr_align-aaaaaaaa` does it by hand"


def asking(hours=24.0):
    retrain = {"mode": "ask", "ask_timeout_h": hours}
    return RunConfig.model_validate({"questions": {"train": ["nq_open"]}, "retrain": retrain})


@pytest.fixture
def terminal(monkeypatch):
    """Answers at a real one, where a person types this; and what it showed."""
    ours, theirs = pty.openpty()

    def answered(config, typed):
        os.write(ours, typed)
        with open(theirs, closefd=False) as stdin, open(theirs, "w", closefd=False) as stdout:
            monkeypatch.setattr(sys, "stdin", stdin)  # not in the fixture: pytest sets them anew before a test
            monkeypatch.setattr(sys, "stdout", stdout)
            answer = ask_at_terminal(config, PROMOTION)
        monkeypatch.undo()
        shown = b""
        while select.select([ours], [], [], 0.5)[0]:
            shown += os.read(ours, 10_000)
        return answer, shown.decode()

    yield answered
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize(
    ("typed", "approve", "note"),
    [
        (b"y\nlooked at it\n", True, "looked at it"),
        (b"Yes\n\n", True, ""),
        (b"no\nnot on a Friday\n", False, "not on a Friday"),
        (b"\n\n", False, COMMAND),
        (b"\x04", False, f"nobody answered; {COMMAND}"),
    ],
)
def test_the_person_at_the_terminal_is_shown_the_decision_and_asked(terminal, typed, approve, note):
    answer, shown = terminal(asking(), typed)
    assert (answer.approve, answer.note) == (approve, note)
    assert answer.by == ("" if typed == b"\x04" else user_name())
    assert "PROMOTE: mr_align-aaaaaaaa, compared with the base model" in shown and "- Mis fell" in shown
    assert "Have champion name mr_align-aaaaaaaa? [y/N]" in shown


def test_after_the_time_out_it_is_no(terminal):
    answer, _ = terminal(asking(hours=0.0001), b"")
    assert (answer.approve, answer.note) == (False, f"nobody answered within 0.0001 hours; {COMMAND}")


def test_without_a_terminal_it_is_no_at_once_and_names_the_command(monkeypatch):
    read, write = os.pipe()
    with open(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        answer = ask_at_terminal(asking(), PROMOTION)
    os.close(write)
    assert not answer.approve and answer.note.startswith("no terminal to ask at") and answer.note.endswith(COMMAND)

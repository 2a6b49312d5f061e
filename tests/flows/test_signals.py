"""``mralign run`` and signals to its process group, as ``timeout`` and a CI's cancel send them, with its own server."""

import json
import random
import signal
import socket

import pytest

from mralign_core.processes.stopping import STOP_SIGNALS
from tests.pocket_store import SMALL
from tests.signal_runs import signal_run

pytestmark = pytest.mark.server
MOST_S = 30.0  # a hang is a minute; that all takes less than 10 s is for test_stopping.py to say
RNG = random.Random(0)
THINKING = "I recall that it is Puville.\n\nLet me check that.\n\nIt seems it is Puville."

FAMILY = """
name: pocket
mode_on: {template: {enable_thinking: true}}
mode_off: {template: {enable_thinking: false}}
layout: "<think>{thinking}</think>\\n\\n<answer> {answer}</answer>"
"""


def options(root, **fields):
    values = {**SMALL, "storage.root": str(root)} | {name.replace("__", "."): v for name, v in fields.items()}
    return ["run", *(f"--set={name}={json.dumps(value)}" for name, value in values.items())]


class DeafServer:
    """Takes every connection and never answers."""

    def __init__(self, listener):
        self._listener = listener
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.fixture
def deaf_server():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield DeafServer(listener)


def check(ended, number):
    assert ended.code in (128 + number, -number), ended
    assert ended.seconds < MOST_S, ended
    assert not ended.left
    is_told = set(ended.states.values()) <= {"CRASHED", "CANCELLED", "COMPLETED"}
    assert is_told or "could not be told" in ended.output, ended


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_it_starts_ends_it(tmp_path, number):
    check(signal_run(tmp_path, options(tmp_path / "store"), seconds=RNG.uniform(0.2, 6), number=number), number)


@pytest.mark.parametrize("to_group", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_signal_while_it_waits_for_a_language_model_ends_it(tmp_path, store_root, deaf_server, to_group):
    rows = [
        {"id": f"t{n}", "question": f"Question {n}?", "gold": "Puville", "thinking": THINKING, "answer": answer}
        for n, answer in enumerate(["Puville", "Drihaven"] * 6)
    ]
    traces = tmp_path / "traces.jsonl"
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    family = tmp_path / "pocket.yaml"
    family.write_text(FAMILY)
    asked = {
        "model": "openai/deaf",
        "api_base": deaf_server.url,
        "input_usd_per_million": 0,
        "output_usd_per_million": 0,
    }
    fields = {f"annotate__{role}": asked for role in ("annotator_a", "annotator_b", "adjudicator")}
    bounds = {"generate__min_reasoning_tokens": 0, "generate__min_segments": 2, "model__family": str(family)}
    ended = signal_run(
        tmp_path,
        [*options(store_root, **fields, **bounds), "--from-traces", str(traces)],
        after="for flow 'annotate'",  # before, the server was asked in vain what it lists the model as
        seconds=RNG.uniform(1, 3),
        to_group=to_group,
        env={"OPENAI_API_KEY": "none"},
    )
    check(ended, signal.SIGTERM)
    assert ended.states["annotate"] == ended.states["mr-align"] == "CRASHED"


def test_a_signal_while_it_computes_ends_it_and_its_server_knows_also_of_a_run_that_was_killed(tmp_path):
    slow = options(tmp_path / "store", model__pocket__pretrain_steps=10_000)
    killed = signal_run(tmp_path, slow, after="for flow 'prepare'", seconds=1.0, number=signal.SIGKILL, to_group=False)
    assert killed.states["mr-align"] == "RUNNING"
    ended = signal_run(tmp_path, slow, after="for flow 'prepare'", seconds=RNG.uniform(0.5, 6))
    check(ended, signal.SIGTERM)
    assert ended.output.count("is Crashed now: Its process is gone.") == 2
    assert ended.states == {"mr-align": "CRASHED", "prepare": "CRASHED"}
    assert "Stopped by SIGTERM; the Prefect server knows that the run has ended." in ended.output

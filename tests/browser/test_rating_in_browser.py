"""Rating in a real Chromium, by keyboard, with the server killed in the middle."""

import os
import re
import signal
import subprocess
import sys

import pytest

from mralign_core.config import StorageConfig
from mralign_core.rating.records import RatingRecords, latest
from mralign_core.storage import ArtifactStore
from tests.ports import free_port
from tests.simulated_run import NAME, Size, publish_run

START_TIMEOUT_S = 90
KEYS = "123456789qwerty"


class RateCommand:
    """``mralign rate`` in a process of its own, which can be killed and started again."""

    def __init__(self, storage, folder, port):
        self.port = port
        self.environment = {**os.environ, "PREFECT_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
        self.options = ["--set", f"storage.root={storage.root}", "--set", f"name={NAME}"]

    def start(self, rater):
        chosen = ["--rater", rater, "--choose", "disagreement", "--traces", "5", "--port", str(self.port)]
        command = [sys.executable, "-m", "flows.commands.cli", "rate", "--config", "pocket", *self.options, *chosen]
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"open (\S+)", line):
                return found[1]
        raise AssertionError("it ended without a link")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def storage(tmp_path, browser):  # made only where there is a browser
    section = StorageConfig(root=str(tmp_path / "store"))
    publish_run(section, Size(20))
    return section


@pytest.fixture
def command(storage, tmp_path):
    command = RateCommand(storage, tmp_path, free_port())
    yield command
    command.kill()


def test_twenty_segments_by_keyboard_with_the_server_killed_in_the_middle(storage, command, watched_page):
    link = command.start("anna")
    with watched_page(f"127.0.0.1:{command.port}") as watched:
        page = watched.page
        page.goto(link)
        page.get_by_text("0 of 20 gone through", exact=True).wait_for()
        given = []

        def rate(number, *, key=None):
            key = key or KEYS[number % len(KEYS)]
            page.keyboard.press(key)
            pressed = page.locator("button[aria-pressed=true]").last
            given.append(pressed.text_content().split()[-1])
            page.keyboard.press("Enter")
            page.get_by_text(f"{number + 1} of 20 gone through", exact=True).wait_for()

        for number in range(8):
            rate(number)
        page.get_by_text("All saved", exact=True).wait_for()
        command.kill()
        for number in range(8, 14):  # the page goes on, and keeps what it said
            rate(number)
        page.get_by_text("6 not saved yet").wait_for()
        page.close()  # the page dies too

        link = command.start("anna")
        page = watched.page.context.new_page()
        page.goto(link)
        page.get_by_text("14 of 20 gone through", exact=True).wait_for()
        page.get_by_text("All saved", exact=True).wait_for()
        for number in range(14, 20):
            rate(number)
        page.get_by_role("link", name="Results").wait_for()
        page.keyboard.press("Enter")
        page.get_by_role("table", name="Agreement beyond chance").wait_for()

    records = RatingRecords(ArtifactStore(storage))
    (name,) = records.names()
    ratings, of = records.ratings(name, "anna"), records.round(name)
    assert [each.n for each in ratings] == list(range(1, 21)), "each is there, once"
    said = latest(ratings)
    assert [said[each.item].said["label_1"] for each in of.items] == given

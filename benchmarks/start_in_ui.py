"""Seconds and clicks from ``make serve`` to a running run of one's own: ``python -m benchmarks.start_in_ui``.

A real Chromium does what a person does: open the link that ``make serve`` prints, Deployments, pipeline (searched for
where it is not among the first), Run, Custom run; name the run, choose another seed, 60 questions and a folder for the
store; submit, again where the server was too busy; Runs, the run. Printed are the clicks (a field that is typed into is
one), the pixels of the form and its fields, and the seconds by step, without a person's reading and typing.
``--checkout`` names a folder of an
earlier commit, to measure it beside this one. Needs the extra ``browser``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, TimeoutError, expect, sync_playwright

from deployments.steps import CHECKOUT
from tests.chromium import CHROMIUM
from tests.door_server import wait_until_recognised
from tests.ports import free_port

PATIENCE_MS = 240_000
BUSY_MS = 10_000
"""After which a person submits again."""


class Person:
    """Who clicks and types, and counts it.

    Args:
        page: where.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.num_clicks = 0
        self._began = time.monotonic()

    def click(self, what: Locator) -> None:
        """One click."""
        self.num_clicks += 1
        what.click()

    def type(self, what: Locator, text: str) -> None:
        """One click into a field, and what is typed there."""
        self.num_clicks += 1
        what.fill(text)

    def say(self, done: str) -> None:
        """Print what has been done, and when."""
        print(f"{time.monotonic() - self._began:6.1f} s  {self.num_clicks:3} clicks  {done}", flush=True)


def start_a_run(page: Page, link: str, store: Path) -> None:
    """From the link to a run that runs."""
    person = Person(page)
    page.goto(link)
    person.click(page.get_by_role("link", name="Deployments").first)
    page.get_by_role("main").get_by_role("link").first.wait_for()
    pipeline = page.get_by_role("main").get_by_role("link", name="pipeline", exact=True).first
    if not pipeline.is_visible():  # in checkouts where it was not among the first ten by name
        person.type(page.get_by_role("textbox", name="Search deployments"), "pipeline")
    person.click(pipeline)
    person.click(page.get_by_role("button", name="Run", exact=True))
    person.click(page.get_by_role("menuitem", name="Custom run"))
    seed = page.get_by_label(re.compile("^Seed")).first
    seed.wait_for()
    fields = page.locator("form input, form textarea, form button[role=combobox], form button[role=switch]").count()
    height = page.evaluate("Math.max(...[...document.querySelectorAll('*')].map(each => each.scrollHeight))")
    person.say(f"the form is there: {height:,} pixels, {fields} fields")
    person.type(page.get_by_label(re.compile("^Run Name", re.I)).first, "my-run")
    person.type(seed, "7")
    limits = page.get_by_label(re.compile("^Question limit|^Limit"))
    for place in range(limits.count()):  # one short field, or one of each question set
        person.type(limits.nth(place), "60")
    person.type(page.get_by_label(re.compile("^Storage root|^Root")).first, str(store))
    person.say("filled in")
    submit = page.get_by_role("button", name="Submit")
    while submit.is_visible():
        person.click(submit)
        with contextlib.suppress(TimeoutError):
            submit.wait_for(state="hidden", timeout=BUSY_MS)
    person.say("submitted")
    person.click(page.get_by_role("link", name="Runs", exact=True).first)
    person.click(page.get_by_role("link", name="my-run").first)
    state = page.get_by_role("main").get_by_text("Running", exact=True).first
    expect(state).to_be_visible(timeout=PATIENCE_MS)
    person.say("running")


def main() -> None:
    """Serve, and start a run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_in_ui", description=str(__doc__).splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, help="the project's folder to serve from")
    checkout = parser.parse_args().checkout.resolve()
    print(f"{checkout}, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="start-in-ui-") as name, sync_playwright() as playwright:
        home, port, began = Path(name), free_port(), time.monotonic()
        env: dict[str, Any] = {**os.environ, "PREFECT_HOME": name, "PYTHONPATH": str(checkout)}
        log = home / "serve.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "deployments.serve", "--port", str(port)]
            serving = subprocess.Popen(command, cwd=checkout, env=env, stdout=output, stderr=output)
        try:
            while "Serving." not in log.read_text():
                assert serving.poll() is None, log.read_text()
                time.sleep(0.2)
            print(f"{time.monotonic() - began:6.1f} s  make serve prints its link", flush=True)
            server = wait_until_recognised(f"http://127.0.0.1:{port}/api", home, serving)
            options = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(60_000)
            start_a_run(page, server.link(), home / "store")
            browser.close()
        finally:
            serving.send_signal(signal.SIGTERM)
            serving.wait(60)


if __name__ == "__main__":
    main()

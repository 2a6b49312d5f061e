"""The pictures of the docs: ``python -m tests.browser.screenshots --report PAGE``, ``--link LINK --run PATH``, or
``--workbench LINK``.

Of the UI it takes the link that ``make serve`` prints and the path of a page, as ``/v2/runs/flow-run/1f2e…``; of
the workbench the link of ``mralign view``.
"""

import argparse
import io
import os
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

from tests.chromium import CHROMIUM

DOCS = Path(__file__).resolve().parents[2] / "docs"
MOST_BYTES = 150_000
TELEPHONE, DESK = ViewportSize(width=420, height=850), ViewportSize(width=1280, height=900)
FIRST_PAGE = ViewportSize(width=1000, height=1230)
"""Of the report, for the README."""
SETTLE_MS = 4000


def save(png, name):
    """Write a picture with so few colours that it is small enough."""
    for colours in (256, 128, 64, 32):
        small = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").quantize(colours).save(small, format="png", optimize=True)
        if small.tell() <= MOST_BYTES:
            break
    (DOCS / name).write_bytes(small.getvalue())
    print(f"docs/{name}: {small.tell():,} bytes")  # noqa: T201


def take_workbench(page, link):
    """The traces with the largest weights, and of the first of them the segment that has it."""
    page.goto(link)
    page.get_by_role("link", name="Traces by their largest weight").click()
    page.get_by_text("found, page 1").wait_for()
    save(page.screenshot(), "workbench-traces.png")
    page.locator("a[data-item]").first.click()
    page.locator(".segment-head").first.wait_for()
    shown = [text for text in page.locator(".segment-head .w").all_text_contents() if "×" in text]
    weights = [float(text.rpartition("×")[2].replace("−", "-")) for text in shown]
    page.locator(".segment-head").nth(weights.index(max(weights))).click()
    save(page.screenshot(), "workbench-trace.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, help="a report.html")
    parser.add_argument("--link", help="what make serve prints")
    parser.add_argument("--run", help="the path of a run's page")
    parser.add_argument("--workbench", help="what mralign view prints")
    parser.add_argument("--artifact", help="the path of an artifact, such as the one with key `run`")
    parser.add_argument("--deployment", help="the path of a deployment's form, as /v2/deployments/deployment/1f2e…/run")
    chosen = parser.parse_args()
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        if chosen.report:
            pictures: list[tuple[str, ViewportSize, Literal["light", "dark"]]] = [
                ("report.png", FIRST_PAGE, "light"),
                ("report-420-light.png", TELEPHONE, "light"),
                ("report-420-dark.png", TELEPHONE, "dark"),
            ]
            for name, size, scheme in pictures:
                page = browser.new_page(viewport=size, color_scheme=scheme)
                page.goto(chosen.report.resolve().as_uri())
                save(page.screenshot(), name)
        if chosen.link:
            page = browser.new_page(viewport=DESK)
            page.goto(chosen.link)
            page.get_by_role("link", name="Deployments").first.wait_for()
            site = chosen.link.partition("/mralign")[0]
            for kind in ("run", "artifact", "deployment"):
                if path := getattr(chosen, kind):
                    page.goto(site + path)
                    page.wait_for_timeout(SETTLE_MS)  # a run's page draws its graph for a while
                    save(page.screenshot(), {"run": "ui-run.png", "artifact": "ui-page.png"}.get(kind, "ui-form.png"))
        if chosen.workbench:
            take_workbench(browser.new_page(viewport=FIRST_PAGE, color_scheme="light"), chosen.workbench)
        browser.close()


if __name__ == "__main__":
    main()

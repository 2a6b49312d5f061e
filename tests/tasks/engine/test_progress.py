"""Progress in the Prefect UI, of tasks and of a flow that waits for its children."""

import httpx
import pytest
from prefect import flow, task
from prefect.runtime import flow_run

from tasks.engine.progress import progress
from tasks.engine.session import session
from tests.prefect_api import auth_for

pytestmark = pytest.mark.server


def on_page(url, page):
    """Key, per cent and words of what the page of a run shows."""
    query = {"artifacts": {"flow_run_id": {"any_": [page]}}}
    found = httpx.post(f"{url}/artifacts/filter", json=query, auth=auth_for(url)).json()
    return [(row["key"], row["data"], row["description"]) for row in found]


@pytest.mark.parametrize("wrap", [lambda body: body, task])
def test_progress_is_on_the_page_of_the_run_until_the_work_ends(prefect_api, wrap):
    seen = []

    def sample(page):
        with progress("sampling", "some-progress") as report:
            report(1, 4)
            seen.append(on_page(prefect_api, page))
            report(4, 4, "7 tokens/s")
            seen.append(on_page(prefect_api, page))

    @flow
    def outer() -> str:
        page = flow_run.id
        wrap(sample)(page)
        return page

    assert on_page(prefect_api, outer()) == []
    assert seen == [
        [("some-progress", 25.0, "sampling: 1 of 4")],
        [("some-progress", 100.0, "sampling: 4 of 4 · 7 tokens/s")],
    ]


def test_tasks_that_share_a_bar_take_it_off_when_the_last_ends(prefect_api):
    seen = []

    @flow
    def outer() -> str:
        with session(), progress("sampling", "shared") as first:
            first(1, 4)
            with progress("sampling", "shared") as second:
                second(2, 4)
            seen.extend(on_page(prefect_api, flow_run.id))
        return flow_run.id

    assert on_page(prefect_api, outer()) == []
    assert [key for key, *_ in seen] == ["shared"]

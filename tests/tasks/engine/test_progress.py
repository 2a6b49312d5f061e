"""Progress in the Prefect UI, of tasks and of a flow that waits for its children."""

import httpx
import pytest
from prefect import flow, task

from tasks.engine.progress import progress
from tests.prefect_api import auth_for

pytestmark = pytest.mark.server


def sample():
    with progress("sampling", "some-progress") as report:
        report(1, 4)
        report(4, 4, "7 tokens/s")


@pytest.mark.parametrize("body", [sample, task(sample)])
def test_progress_is_on_the_page_of_the_run(prefect_api, body):
    @flow
    def outer() -> None:
        body()

    state = outer(return_state=True)
    page = str(state.state_details.flow_run_id)
    url, query = f"{prefect_api}/artifacts/filter", {"sort": "CREATED_DESC"}
    found = httpx.post(url, json=query, auth=auth_for(prefect_api)).json()
    own = [row for row in found if row["flow_run_id"] == page]
    assert [(row["key"], row["data"]) for row in own] == [("some-progress", 100.0)]
    assert own[0]["description"] == "sampling: 4 of 4 · 7 tokens/s"

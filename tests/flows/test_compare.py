"""Deployment ``compare``: versions side by side and the trend, on the page of its run."""

from datetime import UTC, datetime

import httpx
import pytest
from prefect import flow
from prefect.runtime import flow_run

from flows.looking import compare
from mralign_core.config import load_config
from mralign_core.retraining.history import Retraining, Retrainings
from mralign_core.storage import ArtifactStore
from mralign_core.storage.records import RunRecords
from tests.page_artifacts import check_artifacts
from tests.pocket_store import POCKET
from tests.prefect_api import auth_for
from tests.version_store import publish_version

pytestmark = pytest.mark.server
MOVED = {"variant": "mr_align", "baseline": "on", "stratum": "(all)", "metric": "mis", "num_questions": 40}


@flow(name="some-run")
def some_run() -> str:
    return flow_run.id


def test_runs_are_shown_side_by_side_with_the_trend(prefect_api, tmp_path):
    config = load_config(POCKET, {"storage.root": str(tmp_path / "store")})
    store = ArtifactStore(config.storage)
    scores = [{"stratum": "(all)", "scoring": "exact_match", "num_questions": 40, "variant": "mr_align", "mis": 0.2}]
    moved = [{**MOVED, "difference": -0.1, "low": -0.2, "high": -0.05}]
    first, second = (publish_version(store, tmp_path, each, scores=scores, differences=moved) for each in "ab")
    run_id = some_run.with_options(flow_run_name="my-run-of-two")()
    RunRecords(store, config.name).add(run_id, {}, {"version:mr_align": first.ref}, goes_on=False)
    one = Retraining(run="1", at=datetime(2026, 3, 1, tzinfo=UTC), outcome="promoted", version=second.id)
    Retrainings(store, config.name).add(one)

    def shown(runs):
        name = compare.with_options(flow_run_name=f"look-{runs}")(config, runs, return_state=True).state_details
        query = {"artifacts": {"flow_run_id": {"any_": [str(name.flow_run_id)]}}}
        found = httpx.post(f"{prefect_api}/artifacts/filter", json=query, auth=auth_for(prefect_api)).json()
        check_artifacts(found)
        return {each["key"]: each["data"] for each in found}

    both, of_run = shown(""), shown("my-run-of-two")
    assert set(both) == set(of_run) == {"compare", "trend"}
    assert first.name in both["compare"] and second.name in both["compare"]
    assert first.name in of_run["compare"] and second.name not in of_run["compare"]

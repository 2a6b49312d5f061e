"""What runs are called: a typed name stays, a made-up one gives way, stages are called after their run."""

import doctest

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.utilities.names import generate_slug

from mralign_core.config import RunConfig
from tasks.engine import naming
from tasks.engine.naming import is_made_up, name_run, run_name_of
from tests.prefect_api import auth_for

CONFIG = RunConfig.model_validate({"name": "mine", "seed": 3, "questions": {"train": "sciq"}})


def test_doctests():
    assert doctest.testmod(naming).failed == 0


def test_all_that_prefects_server_makes_up_is_known():
    assert all(is_made_up(generate_slug(2)) for _ in range(300))


@pytest.mark.parametrize("name", ["omicron5-ain-shift", "nu6-calondia", "mu3-muluch", "Rustic-Sea Ox"])
def test_what_the_forms_make_up_is_known(name):
    assert is_made_up(name)


@pytest.mark.parametrize(
    "name",
    [
        "baseline",
        "beta-0.1",
        "kto-vs-mr",
        "Seed 3",
        "lr-3e5",
        "mine-s3-0a1b2c",
        "week-48",
        "beta2-sweep",
        "Small-model",
    ],
)
def test_what_people_type_stays(name):
    assert not is_made_up(name)


def test_another_config_has_another_name_and_what_changes_no_result_the_same():
    renamed = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"beta": 0.2})})
    where = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"where": "deployment"})})
    assert run_name_of(renamed) != run_name_of(CONFIG) == run_name_of(where)


@pytest.mark.server
def test_a_run_and_its_stages_on_a_server(prefect_api):
    @flow(name="stage-of-it", flow_run_name=name_run)
    def stage(config: RunConfig) -> str:
        return flow_run.name

    @flow(name="whole", flow_run_name=name_run)
    def whole(config: RunConfig) -> list[str]:
        return [flow_run.name, stage(config)]

    own = run_name_of(CONFIG)
    assert whole(CONFIG) == [own, f"{own}-stage-of-it"]
    with get_client(sync_client=True) as client:
        typed = client.create_flow_run(whole, name="kept as typed")
    from prefect.flow_engine import run_flow

    assert run_flow(whole, typed, parameters={"config": CONFIG}) == ["kept as typed", "kept as typed-stage-of-it"]
    found = httpx.get(f"{prefect_api}/flow_runs/{typed.id}", auth=auth_for(prefect_api)).json()
    assert found["name"] == "kept as typed"

"""Curves of a training that is under way, on the page of its run."""

import time

import httpx
import pytest
from prefect import flow, task
from prefect.runtime import flow_run

from tasks import live_curves as module
from tasks.live_curves import live_curves
from tests.page_artifacts import check_image
from tests.prefect_api import auth_for

pytestmark = pytest.mark.server
ROW = {"epoch": 0.1, "loss": 0.7, "kl_baseline": 0.1, "kl_raw": 0.1, "grad_norm": 1.0, "learning_rate": 1e-5}
REWARDS = {"implicit_reward_positive": 0.2, "implicit_reward_negative": -0.1}


def on_page(url, page):
    query = {"artifacts": {"flow_run_id": {"any_": [page]}}}
    return httpx.post(f"{url}/artifacts/filter", json=query, auth=auth_for(url)).json()


def test_the_picture_follows_the_training_and_goes_with_it(prefect_api, monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.2)
    seen = []

    def wait_for(page, words):
        deadline = time.monotonic() + 30
        while not any(words in each["description"] for each in on_page(prefect_api, page)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        seen.extend(on_page(prefect_api, page))

    @flow
    def trains() -> str:
        with live_curves("mr_align") as curves:
            for step in (1, 2):
                curves.add({"step": step, **ROW, **REWARDS})
            wait_for(flow_run.id, "step 2")
            curves.add({"step": 3, **ROW})
            wait_for(flow_run.id, "step 3")
        return flow_run.id

    assert on_page(prefect_api, trains()) == []
    assert [(each["key"], each["type"]) for each in seen] == [("live-curves-mr-align", "image")] * 2
    first, second = (each["data"] for each in seen)
    check_image("live-curves", second)
    assert first != second


def test_outside_of_a_run_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    monkeypatch.setattr(module, "curves_so_far", None)
    with live_curves("sft") as curves:
        for step in range(3):
            curves.add({"step": step, **ROW})
        time.sleep(0.1)


def trains_two_steps() -> str:
    with live_curves("sft") as curves:
        for step in (1, 2):
            curves.add({"step": step, **ROW})
    return "trained"


def test_a_server_that_does_not_say_whose_page_it_is_does_not_stop_the_training(prefect_api, monkeypatch):
    def out():
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(module, "root_flow_run_id", out)
    assert flow(trains_two_steps)() == "trained"


def test_a_task_outside_of_a_flow_trains_without_a_page(prefect_api):
    assert task(trains_two_steps)() == "trained"

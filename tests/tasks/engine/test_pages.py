"""Artifacts on the page of a run: each key once, with what was told last."""

import json
from uuid import UUID

import pytest
from prefect import flow
from prefect.artifacts import MarkdownArtifact, TableArtifact
from prefect.runtime import flow_run

from tasks.engine.pages import artifacts_on_page, put_on_page

pytestmark = pytest.mark.server


@flow(name="told-twice")
def told_twice() -> UUID:
    page = UUID(flow_run.id)
    for number in (1, 2):
        put_on_page(page, MarkdownArtifact(key="text", description=f"telling {number}", markdown=f"number {number}"))
        put_on_page(page, TableArtifact(key="table", description="about numbers", table=[{"number": str(number)}]))
    return page


def test_what_is_told_again_takes_the_place_of_what_was_told(prefect_api):
    page, other = told_twice(), told_twice()
    assert page != other
    for run in (page, other):
        shown = {artifact.key: artifact for artifact in artifacts_on_page(run)}
        assert len(artifacts_on_page(run)) == 2
        assert (shown["text"].description, shown["text"].data) == ("telling 2", "number 2")
        assert json.loads(str(shown["table"].data)) == [{"number": "2"}]

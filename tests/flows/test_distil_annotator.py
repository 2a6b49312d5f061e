"""Distilling by a form and by the command: one artifact, its run's page, and errors that say what to do."""

import json

import httpx
import pytest

from flows.commands.cli import read_config
from flows.distil_annotator import distil_annotator
from mralign_core.distillation.published import find_annotator
from mralign_core.storage import ArtifactStore, RunRecords
from tasks.engine.last_run import last_run
from tests.core.distillation.made_up_traces import made_up
from tests.prefect_api import auth_for
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store in which a run of config ``pocket`` has labels."""
    folder = tmp_path_factory.mktemp("labelled")
    config = read_config("pocket", {"storage.root": str(folder / "store")})
    rows = [candidate_row(f"t{n}", texts) for n, texts in enumerate(made_up(8, per_question=1, length=4).texts)]
    candidates = publish_candidates(config.storage, rows, folder / "candidates")
    made = {"candidates": candidates, "annotations": label(config, candidates)}
    RunRecords(ArtifactStore(config.storage), "pocket").add("a-run", {}, made, goes_on=False)
    return str(folder / "store")


def run(root, **distil):
    form = {"preset": "pocket", "storage_root": root, "distil": distil}
    return distil_annotator(config=form, return_state=True)


def on_page(url, state):
    chosen = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}, "sort": "UPDATED_DESC"}
    reply = httpx.post(f"{url}/artifacts/filter", json=chosen, timeout=60, auth=auth_for(url)).raise_for_status()
    return {each["key"]: each for each in reply.json()}


def test_a_form_and_the_command_make_one_artifact_and_show_what_it_can_do(root, prefect_api, mralign):
    state = run(root, name="paid")
    annotator = state.result()
    config = read_config("pocket", {"storage.root": root})
    assert find_annotator(ArtifactStore(config.storage), "local/paid", "here") == annotator
    page = on_page(prefect_api, state)
    assert next(iter(page)) == "distilled-annotator", "the newest is listed first"
    assert "`annotate.annotator_a: local/paid`" in page["distilled-annotator"]["data"]
    curve, labels = (page[f"distilled-{name}"]["data"] for name in ("if-segments-go-on", "labels"))
    shares = [row["segments that go on"] for row in (json.loads(curve) if isinstance(curve, str) else curve)]
    assert shares[0] == "0.0%" and len(shares) > 2 and "mean of the labels" in str(labels)
    distillation = last_run(config, "distillation")

    code, told, _ = mralign("distil-annotator", "--name", "other", "--set", f"storage.root={root}")
    assert code == 0 and "mean of the labels" in told
    digest = annotator.key.partition("-")[2]
    assert f"distilled-annotator/other-{digest}; in a config: annotate.annotator_a: local/other" in told
    assert last_run(config, "distillation") == distillation, "found in the store"


def test_what_is_wrong_is_told_in_a_line_that_says_what_to_do(root, mralign):
    state = run(root, labels="/nowhere/theirs.jsonl")
    assert state.is_failed() and "\n" not in str(state.message)
    assert "distil.labels /nowhere/theirs.jsonl: it can't be read" in str(state.message)
    assert "give JSONL in UTF-8" in str(state.message)
    code, _, told = mralign("distil-annotator", "--name", "Paid", "--set", f"storage.root={root}")
    assert code == 2 and "--name 'Paid': write a small letter" in told
    unmade = ["--set", f"storage.root={root}", "--set", "name=unmade"]
    code, _, told = mralign("distil-annotator", *unmade)
    assert code == 2 and "no run of config 'unmade'" in told and "run stage 'generate' first" in told

"""Retrainings that train on what is new to the champion, by their flow, week by week on one store."""

import json
import shutil
from pathlib import Path

import pytest

from flows.commands.export import Chosen, export
from flows.weekly_retrain import weekly_retrain
from mralign_core.intake import Resolutions
from mralign_core.pocket.world import build_world
from mralign_core.storage import ArtifactStore
from mralign_core.versions.aliases import Aliases
from mralign_core.versions.differences import version_differences
from mralign_core.versions.version import TRAINING_TRACES, candidates_behind, read_versions, trained_on
from mralign_core.workbench.tables import find_run
from tasks.engine.one_task import Inputs
from tests.pocket_store import copy_store, small_config
from tests.prefect_api import reporting_to
from tests.version_store import publish_version

pytestmark = pytest.mark.server


class Weeks:
    """A store, and the config that a week runs with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        frame = build_world(0).questions_frame()
        self.rows = frame[frame["split"] == "train"].sample(frac=1, random_state=0).to_dict("records")
        self.store = ArtifactStore(self.config(1).storage)

    def config(self, num_questions, *, trace_logps=False, **retrain):
        rows = self.rows[:num_questions]
        path = self.root.parent / "questions.jsonl"
        path.write_text(
            "\n".join(json.dumps({"question": row["question"], "answer": row["answers"][0]}) for row in rows)
        )
        return small_config(
            self.root,
            name="weekly",
            questions__train={"path": str(path.with_name("*.jsonl"))},
            questions__eval={"name": "pocket", "limit": 30},
            train__variants=["mr_align"],
            train__trace_logps=trace_logps,
            retrain={"train_on": "new", "gate": {"min_gain": 0.9}, **retrain},
        )

    def run(self, num_questions, **retrain):
        """The line that a week ends with, and the newest version."""
        line = weekly_retrain(self.config(num_questions, **retrain))
        return line, read_versions(self.store)[0]

    def questions_of(self, ref):
        return set(self.store.read_table(ref, "candidates.parquet")["question"])


@pytest.fixture(scope="module")
def weeks(pocket_store, prefect_url, tmp_path_factory):
    return Weeks(copy_store(pocket_store, tmp_path_factory.mktemp("news") / "store"))


@pytest.fixture(scope="module")
def first(weeks, prefect_url):
    """The champion: the first week's model, which a person promotes."""
    with reporting_to(prefect_url):
        line, version = weeks.run(100)
    assert line.startswith(("held: ", "rejected: "))
    Aliases(weeks.store).move("champion", version.id, expected=None, by="Ada")
    return version


@pytest.fixture(scope="module")
def second(weeks, first, prefect_url):
    with reporting_to(prefect_url):
        line, version = weeks.run(150, trace_logps=True)
    assert line.startswith(("held: ", "rejected: "))
    return version


def test_without_a_champion_it_trains_on_all(weeks, first):
    assert first.traces.stage == "candidates" and not weeks.store.keys(TRAINING_TRACES)


def test_a_week_without_new_questions_ends_in_a_line(weeks, first, prefect_api):
    line, version = weeks.run(100)
    assert line.startswith("nothing-new: against mr_align-") and version.id == first.id
    assert not weeks.store.keys(TRAINING_TRACES)


def test_what_is_new_is_trained_on_and_all_is_weighed(weeks, first, second):
    everything = weeks.questions_of(candidates_behind(weeks.store, second.traces))
    known, new = weeks.questions_of(first.traces), weeks.questions_of(second.traces)
    assert known < everything and new == everything - known
    assert not trained_on(weeks.store, second) & trained_on(weeks.store, first)
    of_weights = {ref.stage: ref for ref in weeks.store.manifest(second.parent("weights")).parents}
    of_matrices = {ref.stage: ref for ref in weeks.store.manifest(of_weights["transitions"]).parents}
    assert weeks.questions_of(of_weights["candidates"]) == weeks.questions_of(of_matrices["candidates"]) == everything
    last = Resolutions(weeks.store, "weekly").last()
    assert last is not None
    (looked_up,) = [one for one in last.references if one.field == "retrain.beyond"]
    assert (looked_up.kind, looked_up.asked, looked_up.pinned) == ("alias", "champion", first.id)


def test_what_was_trained_on_is_looked_at_under_the_new_adapter(weeks, second):
    run = find_run(weeks.store, "weekly")
    looked_at = run.artifacts["policy-logps:mr_align"]
    table, traces = (
        weeks.store.read_table(ref, f"{name}.parquet")
        for ref, name in ((looked_at, "policy"), (second.traces, "candidates"))
    )
    assert table["trace_id"].tolist() == traces["trace_id"].tolist()
    assert second.adapter in weeks.store.manifest(looked_at).parents
    assert (table["policy_logp"] - table["reference_logp"]).astype(float).abs().max() > 0


def test_it_is_compared_and_exported_as_what_it_was_trained_on(weeks, first, second, tmp_path):
    found = version_differences(weeks.store, first, second)
    assert not found.missing
    assert (found.traces.both, found.traces.added) == (0, weeks.store.manifest(second.traces).rows)
    config = weeks.config(150)
    export(config, Inputs(config, {}), Chosen("mr_align", second, ""), tmp_path / "out", merge=False)
    assert "chosen to train on" in (tmp_path / "out" / "README.md").read_text()
    assert "chosen to train on" in weeks.store.open_file(second.ref, "card.md").read_text()


def test_after_a_kill_the_same_is_trained_on(weeks, second, prefect_api):
    for ref in (second.ref, second.adapter, second.traces):
        shutil.rmtree(weeks.root / "artifacts" / ref.stage / ref.key)
    _, again = weeks.run(150)
    assert (again.id, again.traces, again.adapter) == (second.id, second.traces, second.adapter)


def test_what_was_held_is_still_new_and_some_of_the_rest_is_trained_on_again(weeks, first, second, prefect_api):
    _, third = weeks.run(150, train_on="replay", replay_share=0.5)
    known, trained = weeks.questions_of(first.traces), weeks.questions_of(third.traces)
    assert weeks.questions_of(second.traces) < trained
    assert len(trained & known) == round(0.5 * len(known))


def test_a_champion_whose_base_model_is_not_what_it_was_is_not_compared(weeks, first, second, prefect_api, tmp_path):
    other = publish_version(weeks.store, tmp_path, "f", parents=[first.traces, first.adapter])
    Aliases(weeks.store).move("other", other.id, expected=None, by="Ada")
    line, _ = weeks.run(150, alias="other")
    assert line.startswith("held: base model pocket is not what it was when the champion was trained")

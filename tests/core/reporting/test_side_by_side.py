"""Versions side by side, and the trend over retrainings."""

from datetime import UTC, datetime, timedelta

import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError
from mralign_core.reporting.result_table import ResultCell
from mralign_core.reporting.retraining_trend import trend, weeks
from mralign_core.reporting.side_by_side import differing_fields, side_by_side, side_by_side_markdown
from mralign_core.reporting.style import to_png
from mralign_core.retraining.history import Retraining
from mralign_core.storage import ArtifactStore
from mralign_core.storage.records import RunRecords
from mralign_core.versions.naming import FEW, named_versions
from mralign_core.versions.record import QuestionDigest
from tests.version_store import CONFIG, publish_version


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def make(store, tmp_path):
    return lambda letter, **record: publish_version(store, tmp_path, letter, **record)


def measured(mis, difference):
    """What a version's record says of its scores."""
    place = {"stratum": "(all)", "scoring": "exact_match", "num_questions": 40}
    row = {"variant": "mr_align", "baseline": "on", "stratum": "(all)", "metric": "mis", "num_questions": 40}
    low, high = difference - 0.05, difference + 0.05
    return {
        "scores": [
            {**place, "variant": "on", "acc": 0.5, "mis": 0.25},
            {**place, "variant": "mr_align", "acc": 0.6, "mis": mis},
        ],
        "differences": [{**row, "difference": difference, "low": low, "high": high}],
    }


def test_a_column_a_version_with_scores_and_the_fields_that_differ(make):
    other = {**CONFIG, "train": {"beta": 0.2}}
    versions = [make("a", **measured(0.15, -0.1)), make("b", config=other, **measured(0.24, -0.01))]
    tables = {table.columns[0]: table for table in side_by_side(versions, {"champion": versions[0].id})}
    assert tables["version"].columns == ["version", "mr_align-aaaaaaaa", "mr_align-bbbbbbbb"]
    assert ["named by", "champion", "–"] in tables["version"].rows
    assert ["(all) · Mis", "15.0", "24.0"] in tables["%, by questions and metric"].rows
    moved = [ResultCell("−10.0 [−15.0, −5.0]", "better"), ResultCell("−1.0 [−6.0, +4.0]", "open")]
    assert tables["over think on, points"].rows == [["(all) · Mis", *moved]]
    assert tables["config"].rows == [["train.beta", "0.1", "0.2"]]
    page = side_by_side_markdown(versions, {})
    assert "**−10.0 [−15.0, −5.0]**" in page and "not all measured on the same questions" not in page


def test_long_values_that_differ_at_their_end_differ():
    path = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B-with-a-long-name"
    configs = [{"model": {"path": f"{path}-{kind}"}, "seed": 0} for kind in ("AWQ", "FP8")]
    ((field, *cells),) = differing_fields(configs)
    assert field == "model.path"
    assert [cell[-4:-1] for cell in cells] == ["AWQ", "FP8"] and all(cell[0] == "…" for cell in cells)


def test_other_questions_are_said(make):
    versions = [make("a"), make("b", held_out=QuestionDigest.of(["d1"]))]
    assert "not all measured on the same questions" in side_by_side_markdown(versions, {})
    assert "no version in this store yet" in side_by_side_markdown([], {})


def test_versions_are_named_by_themselves_by_their_run_or_not_at_all(store, make):
    made = {letter: make(letter) for letter in "abc"}
    refs = {f"version:{letter}": made[letter].ref for letter in "ab"}
    RunRecords(store, "mine").add("run-1", {}, refs, goes_on=False)
    RunRecords(store, "other").add("run-2", {}, {"model": made["a"].parent("model")}, goes_on=False)

    def letters(*asked):
        return sorted(version.ref.key[0] for version in named_versions(store, *asked))

    assert letters(["mr_align-cc"]) == ["c"]
    assert letters(["mine", "c"]) == ["a", "b", "c"]
    assert letters([], ["run-1"]) == ["a", "b"]
    assert len(letters([])) == min(3, FEW)
    with pytest.raises(ArtifactError, match="has made no version yet"):
        named_versions(store, ["other"])
    with pytest.raises(ArtifactError, match="no alias or version fits 'nothing'"):
        named_versions(store, ["nothing"])


def test_the_trend_has_a_mark_a_decided_retraining_and_tells_its_interval(make):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    records = {each.id: each.record for each in (make("a", **measured(0.15, -0.1)), make("b", **measured(0.3, 0.05)))}
    first, second = records
    history = [
        Retraining(run="1", at=start, outcome="promoted", version=first),
        Retraining(run="2", at=start + timedelta(weeks=1), outcome="nothing-new", version=first),
        Retraining(run="3", at=start + timedelta(weeks=2), outcome="held", version=second),
        Retraining(run="4", at=start + timedelta(weeks=3), outcome="rejected", version=second),
        Retraining(run="5", at=start + timedelta(weeks=4), outcome="promoted", version="mr_align-gone"),
    ]
    told = weeks(history, records)
    assert [week.retraining.run for week in told] == ["1", "4"]  # of one that was decided on twice, the last
    figure = trend(told, [history[1].at])
    said = str(figure.get_label())
    assert "2026-03-01, promoted: Mis −10.0 [−15.0, −5.0]." in said
    assert "2026-03-22, rejected: Mis +5.0 [0.0, +10.0]." in said
    assert len(to_png(figure)) > 5_000
    assert weeks(history, {}) == []

"""A run whose annotator is a person: labels, key, lineage, and traces that the person did not rate."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.pipeline import pipeline
from mralign_core.config import RetentionConfig, RunConfig, StorageConfig, overridden
from mralign_core.errors import ConfigError, DataError
from mralign_core.evaluation.held_out_traces import variants_to_label
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.rating.choosing import make_round
from mralign_core.rating.human_sets import find_human_labels, publish_human_labels, publish_ratings
from mralign_core.rating.records import Choice, Rating, RatingRecords
from mralign_core.retention.collect import Collector
from mralign_core.retention.verify import verify_store
from mralign_core.storage import ArtifactStore, render_lineage
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.tables import RunTables
from tasks.annotate import _human_labels, collect_annotations, quote_annotations, require_rated
from tasks.engine.session import session
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label

TEXTS = {
    "t1": ["Let me check that again.", "I recall that it was Galen."],
    "t2": ["Wait, maybe not.", "So the answer is Galen."],
}
CUE = {"annotator_b": "cue/b", "adjudicator": "cue/adjudicator", "cue_drop_prob": 0, "cue_flip_prob": 0}


@pytest.fixture
def storage(tmp_path):
    return StorageConfig(root=str(tmp_path / "store"))


@pytest.fixture
def candidates(storage, tmp_path):
    rows = [candidate_row(name, texts) for name, texts in TEXTS.items()]
    return publish_candidates(storage, rows, tmp_path / "candidates")


def config_of(storage, annotator_a="human/anna", **annotate):
    section = {**CUE, "annotator_a": annotator_a, **annotate}
    return RunConfig(storage=storage, questions={"train": "nq_open"}, annotate=section)


def rate(storage, candidates, said, rater="anna"):
    """Have a rater say of each segment, by trace and number, what ``said`` has; and publish it."""
    store = ArtifactStore(storage)
    records = RatingRecords(store)
    tables = RunTables(store, "a run", {"candidates": candidates})
    of = make_round(shared_database(), tables, "labels", Choice(num=10))
    name = records.begin(of)
    n = len(records.ratings(name, rater))
    for shown in of.items:
        labels = said.get((shown.about, shown.segment))
        if labels is not None:
            n += 1
            columns = dict(zip(("label_1", "label_2"), labels or ["no label"], strict=False))
            records.add(name, rater, Rating(n=n, item=shown.item, state="rated", said=columns))
    return publish_ratings(store, rater, PAPER_TAXONOMY)


ALL = {("t1", 0): ["analogy"], ("t1", 1): ["retrieval", "framing"], ("t2", 0): [], ("t2", 1): ["synthesis"]}


def test_a_persons_labels_are_an_annotators(storage, candidates):
    published = rate(storage, candidates, ALL)
    made = label(config_of(storage), candidates)
    store = ArtifactStore(storage)
    rows = store.read_table(made, "annotations.parquet").set_index(["trace_id", "segment"])
    assert {key: sorted(rows.loc[key, "labels_a"]) for key in ALL} == {key: sorted(said) for key, said in ALL.items()}
    assert list(rows.loc[("t1", 1), "confidences_a"]) == [10, 10]
    # A label that only the person gave is as sure as can be, and is added.
    assert "analogy" not in rows.loc[("t1", 0), "labels_b"] and "analogy" in rows.loc[("t1", 0), "labels"]
    raw = store.read_table(made, "raw_annotations.parquet")
    assert set(raw[raw["role"] == "annotator_a"]["model"]) == {"human/anna"}
    manifest = store.manifest(made)
    assert published in manifest.parents and manifest.fingerprint["human_labels"] == {"annotator_a": published.sha256}
    assert f"human-labels/{published.key[:12]}" in render_lineage(store.lineage(made))
    assert manifest.cost_usd == 0


def test_the_key_goes_by_what_the_person_said(storage, candidates):
    def key(**annotate):
        return collect_annotations.work(config_of(storage, **annotate), candidates).key

    first = rate(storage, candidates, ALL)
    before = key()
    assert rate(storage, candidates, ALL).key == first.key and key() == before, "saying it again changes nothing"
    second = rate(storage, candidates, {("t1", 1): ["synthesis"]})
    assert key() != before
    pinned = [key(annotator_a=f"human/{ref.key}") for ref in (first, second)]
    assert len({*pinned, before, key()}) == 4
    store = ArtifactStore(storage)
    labels = store.read_table(second, "labels.parquet").set_index(["trace_id", "segment"])["labels"]
    assert list(labels["t1", 1]) == ["synthesis"] and list(labels["t1", 0]) == ["analogy"]
    gc = Collector(store, RetentionConfig(runs=0, days=0, grace_hours=0), {})
    gc.carry_out(gc.plan())
    assert key(annotator_a=f"human/{first.key}") == pinned[0] and store.find("candidates", candidates.key)


def test_one_segment_rated_in_two_runs_with_other_texts_is_published_with_both(storage, candidates, tmp_path):
    rate(storage, candidates, ALL)
    other = publish_candidates(storage, [candidate_row("t1", ["Another model thinks so."])], tmp_path / "other")
    published = rate(storage, other, {("t1", 0): ["framing"]})
    table = ArtifactStore(storage).read_table(published, "labels.parquet")
    said = sorted(list(row.labels) for row in table.itertuples() if (row.trace_id, row.segment) == ("t1", 0))
    assert said == [["analogy"], ["framing"]] and len(table) == 5
    label(config_of(storage), candidates)
    label(config_of(storage), other)


def test_a_name_stands_for_what_was_published_last_also_where_it_is_old(storage, candidates):
    store = ArtifactStore(storage)
    first = rate(storage, candidates, ALL)
    second = rate(storage, candidates, {("t1", 1): ["synthesis"]})
    assert find_human_labels(store, "human/anna", "annotate.annotator_a") == second
    assert rate(storage, candidates, {("t1", 1): ALL["t1", 1]}) == first
    gc = Collector(store, RetentionConfig(runs=0, days=0, grace_hours=0), {})
    gc.carry_out(gc.plan())
    assert find_human_labels(store, "human/anna", "annotate.annotator_a") == first
    assert publish_ratings(store, "anna", PAPER_TAXONOMY) == first
    folder = Path(storage.root, "ratings", "published", "anna")
    records = sorted(path.name for path in folder.iterdir())
    assert [name[:9] for name in records] == ["00000001-", "00000002-", "00000003-"], "the last said nothing new"
    assert not verify_store(store).damaged
    (folder / records[0]).rename(folder / records[0].replace("00000001", "00000009"))
    (damage,) = verify_store(store).damaged
    assert "its name says otherwise" in damage.problem


def test_traces_that_were_not_rated_are_named_before_anybody_is_asked(storage, candidates):
    rate(storage, candidates, {key: said for key, said in ALL.items() if key != ("t2", 1)})
    for ask in (label, quote_annotations):
        with pytest.raises(DataError, match=r"annotator_a: human/anna has no label .* of 1 of these .* t2\. Have them"):
            ask(config_of(storage), candidates)
    assert not ArtifactStore(storage).keys("annotations-shard")


def test_labels_of_another_text_are_no_labels(storage, candidates, tmp_path):
    rate(storage, candidates, ALL)
    rows = [candidate_row("t1", [*TEXTS["t1"][:1], "I recall that it was Hippocrates."])]
    other = publish_candidates(storage, rows, tmp_path / "other")
    with pytest.raises(DataError, match=r"of 1 of these 1 traces: t1"):
        label(config_of(storage), other)


def test_who_published_nothing_or_with_other_labels_is_no_annotator(storage, candidates):
    with pytest.raises(ConfigError, match=r"human/ben has published no labels .*mralign rate --rater ben --publish"):
        label(config_of(storage, "human/ben"), candidates)
    with pytest.raises(ConfigError, match="human/ben has published no labels"):  # before questions are even read
        pipeline.fn(config_of(storage, "human/ben"))
    table = ArtifactStore(storage).read_table(rate(storage, candidates, ALL), "labels.parquet")
    table["labels"] = [["shout"]] * len(table)
    foreign = Taxonomy(("shout",), {"shout": "talk"}, {"shout": "shouts"})
    publish_human_labels(ArtifactStore(storage), "carl", table, parents=[], rounds=[], taxonomy=foreign)
    with pytest.raises(ConfigError, match="another label set, one with 'shout'"):
        label(config_of(storage, "human/carl"), candidates)


def test_labels_of_another_set_are_none_also_where_the_used_ones_are_in_both(storage, candidates):
    table = ArtifactStore(storage).read_table(rate(storage, candidates, ALL), "labels.parquet")
    names = PAPER_TAXONOMY.labels[:-1]
    fewer = Taxonomy(
        names,
        {name: PAPER_TAXONOMY.macro_strategies[name] for name in names},
        {name: PAPER_TAXONOMY.definitions[name] for name in names},
    )
    publish_human_labels(ArtifactStore(storage), "carl", table, parents=[], rounds=[], taxonomy=fewer)
    with pytest.raises(ConfigError, match=f"another label set, one without '{PAPER_TAXONOMY.labels[-1]}'"):
        label(config_of(storage, "human/carl"), candidates)


def test_within_a_session_each_role_has_its_own_person(storage, candidates):
    rate(storage, candidates, ALL)
    with session():
        first = _human_labels(config_of(storage))
        second = _human_labels(config_of(storage, "cue/a", annotator_b="human/anna"))
    assert (set(first), set(second)) == ({"annotator_a"}, {"annotator_b"})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"adjudicator": "human/anna"}, "can't adjudicate"),
        ({"annotator_a": "human/Anna B"}, "names nobody"),
        ({"annotator_a": {"model": "human/anna", "temperature": 0.5}}, "nothing but the name"),
    ],
)
def test_a_config_that_a_person_can_not_fill_is_refused(storage, fields, problem):
    with pytest.raises(ValidationError, match=problem):
        config_of(storage, **fields)


@pytest.mark.parametrize("wanted", ["aligned", "all"])
def test_held_out_thinking_that_no_person_saw_is_not_asked_of_one(storage, wanted):
    config = config_of(storage)
    assert not variants_to_label(config)
    with pytest.raises(ConfigError, match=f"label_thinking '{wanted}' .* human/anna has labelled none of that"):
        overridden(config, {"evaluate.label_thinking": wanted})


@pytest.mark.parametrize("traces", ["all_draws", "matched"])
def test_draws_that_no_person_can_rate_are_refused_before_anybody_is_asked(storage, traces):
    config = config_of(storage)
    fields = {"estimate.traces": traces, "generate.draws": "exhaustive"}
    with pytest.raises(
        ConfigError, match=f"estimate.traces '{traces}' has the annotators .* human/anna can have rated"
    ):
        overridden(config, fields)
    overridden(config, {**fields, "annotate.annotator_a": {"model": "cue/a"}})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("induce.namer", {"model": "human/anna"}),
        ("judge.endpoints", [{"model": "human/anna"}]),
        ("generate.endpoint", {"model": "human/anna"}),
    ],
)
def test_a_person_is_nothing_but_an_annotator(storage, field, value):
    given = {field: value, "questions.eval": ["simpleqa"], "generate.sampler": "endpoint"}
    with pytest.raises(ConfigError, match=rf"{field}\S*: human/anna is a person, who can be an annotator only"):
        overridden(config_of(storage), given)


def test_a_panel_with_a_person_who_rated_too_little_is_refused_by_name(storage, candidates):
    rate(storage, candidates, {("t1", 0): ["analogy"]})
    with pytest.raises(DataError, match="human/anna has no label of some segment of 2 of these 2"):
        require_rated(config_of(storage), candidates)

"""Distilling as an artifact: what its key goes by, what it says it can do, and what is published of it."""

import json

import pandas as pd
import pytest

from mralign_core.config import RunConfig, StorageConfig, overridden
from mralign_core.distillation.fitting import distil
from mralign_core.distillation.published import find_annotator, publish_annotator
from mralign_core.distillation.teaching import traces_of_annotations
from mralign_core.errors import ConfigError, DataError
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy
from mralign_core.rating.human_sets import publish_human_labels
from mralign_core.reporting.distillation_page import distillation_markdown
from mralign_core.spreadsheets import item_id
from mralign_core.storage import ArtifactStore
from tasks.distil_annotator import distil_labels, learns_from, publish_distilled, read_measured
from tests.core.distillation.made_up_traces import made_up
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label

LABELS = {"alpha": "retrieval", "beta": "backtracking", "gamma": "synthesis"}
TRACES = made_up(8, per_question=1, length=4, garbled=0.2)
OFFLINE = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    storage = StorageConfig(root=str(tmp_path_factory.mktemp("made") / "store"))
    annotate = {**OFFLINE, "cue_drop_prob": 0, "cue_flip_prob": 0}
    return RunConfig(name="made", storage=storage, questions={"train": "nq_open"}, annotate=annotate)


@pytest.fixture(scope="module")
def inputs(config, tmp_path_factory):
    """The labels of a run, and its traces."""
    rows = [candidate_row(f"t{number}", texts) for number, texts in enumerate(TRACES.texts)]
    candidates = publish_candidates(config.storage, rows, tmp_path_factory.mktemp("candidates") / "made")
    return {"annotations": label(config, candidates), "candidates": candidates}


@pytest.fixture(scope="module")
def distillation(config, inputs):
    return distil_labels.run_here(config, **inputs)


def learning(config, **distil):
    return overridden(config, {f"distil.{name}": value for name, value in distil.items()})


def file_of(folder, traces=TRACES):
    lines = [
        {
            "question": question,
            "segments": [{"text": t, "label": LABELS[given]} for t, (given,) in zip(*trace, strict=True)],
        }
        for question, *trace in zip(traces.questions, traces.texts, traces.labels, strict=True)
    ]
    folder.mkdir()
    (folder / "theirs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(folder / "theirs.jsonl")


def test_it_is_made_once_and_published_under_any_name_as_what_was_fitted(config, inputs, distillation, tmp_path):
    again = distil_labels.produce(learning(config, name="other"), **inputs)
    assert again.was_cached and again.ref == distillation
    one, other = (publish_distilled(learning(config, name=name), distillation) for name in ("paid", "other"))
    assert one.key.partition("-")[2] == other.key.partition("-")[2] and one.sha256 == other.sha256
    store, elsewhere = ArtifactStore(config.storage), ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    assert find_annotator(store, "local/paid", "here") == one
    tables = (store.read_table(inputs[name], f"{name}.parquet") for name in ("annotations", "candidates"))
    fitted = distil(traces_of_annotations(*tables), PAPER_TAXONOMY.labels).annotator
    assert publish_annotator(elsewhere, "paid", fitted, parents=[], about={}).key == one.key
    said = store.manifest(one)
    assert said.parents == [inputs["annotations"], inputs["candidates"]]
    assert said.fingerprint["labels_of"] == f"annotations/{inputs['annotations'].key}"
    assert said.fingerprint["held_out"] == read_measured(config, distillation).in_short


def test_what_it_can_do_is_kept_by_name_and_told_in_words_first(config, distillation):
    records = ArtifactStore(config.storage).read_json(distillation, "held_out.json")
    for name in ("if_segments_go_on", "if_traces_go_on"):
        shares = [row["share"] for row in records[name]]
        assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares) and len(shares) > 3
    measured = read_measured(config, distillation)
    alone, tenth = measured.if_segments_go_on[0], min(measured.if_segments_go_on, key=lambda row: abs(row.share - 0.1))
    page = distillation_markdown(measured, "paid", "distilled-annotator/paid-0123456789abcdef", "annotations/x")
    first, second, *_ = page.split("\n\n")
    assert first.startswith("On folds of 8 traces that it did not see") and f"{measured.scores.accuracy:.1%}" in first
    assert f"{tenth.macro_f1:.3f}" in second and f"{alone.macro_f1:.3f}" in second
    assert "`annotate.annotator_a: local/paid`" in page and "`local/paid-01234567` pins" in page


def test_of_a_file_the_contents_count_and_not_its_place(config, distillation, tmp_path):
    here, there = (learning(config, labels=file_of(tmp_path / name)) for name in ("here", "there"))
    assert learns_from(here) == ()
    key = distil_labels.work(here).key
    assert key == distil_labels.work(there).key != distillation.key
    other = learning(config, labels=file_of(tmp_path / "other", made_up(8, seed=1, per_question=1, length=4)))
    assert distil_labels.work(other).key != key
    with pytest.raises(DataError, match=r"distil.labels .*nothing.jsonl: it can't be read .*give JSONL"):
        distil_labels.run_here(learning(config, labels=str(tmp_path / "nothing.jsonl")))


def test_of_a_person_what_was_published_counts_and_is_its_parent(config, inputs):
    store, of_anna = ArtifactStore(config.storage), learning(config, labels="human/anna")
    with pytest.raises(ConfigError, match=r"distil\.labels: human/anna has published no labels"):
        distil_labels.run_here(of_anna, candidates=inputs["candidates"])

    def publish(num_traces, taxonomy=PAPER_TAXONOMY):
        rows = [
            {
                "item": item_id(f"t{trace}", place, text),
                "trace_id": f"t{trace}",
                "segment": place,
                "labels": [LABELS[given]],
            }
            for trace, (texts, labels) in enumerate(zip(TRACES.texts[:num_traces], TRACES.labels, strict=False))
            for place, (text, (given,)) in enumerate(zip(texts, labels, strict=True))
        ]
        parents = [inputs["candidates"]]
        return publish_human_labels(store, "anna", pd.DataFrame(rows), parents=parents, rounds=[], taxonomy=taxonomy)

    def work():
        return distil_labels.work(of_anna, candidates=inputs["candidates"])

    assert learns_from(of_anna) == ("candidates",)
    few, before = publish(6), work().key
    person = publish(7)
    made = distil_labels.run_here(of_anna, candidates=inputs["candidates"])
    assert made.key != before and few != person
    assert store.manifest(made).counts["traces"] == 7
    published = publish_distilled(of_anna, made)
    assert store.manifest(published).parents == [inputs["candidates"], person]
    assert store.manifest(published).fingerprint["labels_of"] == f"{person.stage}/{person.key}"

    foreign = Taxonomy(("shout",), {"shout": "talk"}, {"shout": "shouts"})
    publish(8, foreign)
    with pytest.raises(ConfigError, match=r"distil\.labels: human/anna rated with another label set, one with 'shout'"):
        distil_labels.run_here(of_anna, candidates=inputs["candidates"])

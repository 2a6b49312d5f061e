"""The comparison as a task: panels and sheets on a small table of candidates, in this process, with no server."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mralign_core.comparison.sheets import write_sheet
from mralign_core.config import RunConfig, parse_config
from mralign_core.errors import ConfigError, DataError
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.compare_annotators import compare_annotations, read_agreement
from tests.stages import label

CUE = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
TEXTS = (
    "Okay, so the question is asking who wrote it.",
    "I recall that Galen wrote many books.",
    "Wait, let me double-check that.",
    "Alternatively, it might be someone else, because the style is similar.",
    "To sum up, the answer is Galen.",
)


def candidate(number: int) -> dict[str, object]:
    texts = [TEXTS[place] for place in (np.arange(4) + number) % len(TEXTS)]
    completion, segments = "<think>", []
    for place, text in enumerate(texts):
        span = {"start": len(completion), "end": len(completion) + len(text)}
        segments.append({**span, "token_start": place, "token_end": place + 1})
        completion += f"{text}\n\n"
    return {
        "trace_id": f"t{number}",
        "question_id": f"q{number}",
        "question": f"Who wrote book {number}?",
        "answers": ["Galen"],
        "stratum": "",
        "polarity": ("positive", "negative")[number % 2],
        "draw": 0,
        "prompt": "",
        "completion": completion,
        "prompt_ids": [1],
        "completion_ids": [1] * len(texts),
        "end_token_id": None,
        "answer": "Galen",
        "segments": segments,
        "reasoning_tokens": len(texts),
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    panels = [
        {"name": "quiet", "annotate": CUE | {"cue_drop_prob": 0.0, "cue_flip_prob": 0.0}},
        {"name": "strict", "annotate": CUE | {"confidence_threshold": 9.0}},
    ]
    return RunConfig.model_validate(
        {
            "name": "comparison",
            "storage": {"root": str(tmp_path_factory.mktemp("store"))},
            "questions": {"train": "nq_open"},
            "annotate": CUE,
            "compare": {"panels": panels, "num_resamples": 100},
        }
    )


@pytest.fixture(scope="module")
def candidates(config, tmp_path_factory):
    store, folder = ArtifactStore(config.storage), tmp_path_factory.mktemp("candidates")
    frame = pd.DataFrame([candidate(number) for number in range(24)])
    write_table(folder, "candidates.parquet", frame, CANDIDATES)
    return store.publish("candidates", "k", folder, parents=[], fingerprint={}, table=CANDIDATES.name)


@pytest.fixture(scope="module")
def panels(config, candidates):
    others = {panel.name: config.model_copy(update={"annotate": panel.annotate}) for panel in config.compare.panels}
    return {
        "run": label(config, candidates),
        **{name: label(settings, candidates) for name, settings in others.items()},
    }


@pytest.fixture
def sheet(config, candidates, tmp_path):
    """A sheet of ten traces with every row rated but one, and its path."""
    frame = ArtifactStore(config.storage).read_table(candidates, "candidates.parquet")
    rng = np.random.default_rng(0)
    path = write_sheet(tmp_path / "rater-1.csv", frame, PAPER_TAXONOMY, num_traces=10, rng=rng).sheet
    edit(path, lambda number, row: row | {"label_1": "" if number == 0 else "retrieval"})
    return path


def edit(path: Path, change) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [change(number, row) for number, row in enumerate(csv.DictReader(file))]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def with_sheets(config, *paths):
    compare = config.compare.model_copy(update={"sheets": tuple(str(path) for path in paths)})
    return config.model_copy(update={"compare": compare})


def test_panels_and_people_are_compared_with_each_other(config, candidates, panels, sheet):
    settings = with_sheets(config, sheet)
    agreement = compare_annotations.run_here(settings, candidates, panels)
    found = read_agreement(settings, agreement)
    names = [row["name"] for row in found["sets"]]
    assert names[:3] == ["run A", "run B", "run pipeline"] and names[-1] == "rater-1"
    named = {f"{panel} {who}" for panel in panels for who in ("A", "B", "pipeline")}
    assert set(names) | {name for name in found["notes"] if " " in name} == named | {"rater-1"}
    assert found["notes"]["strict A"] == "equals run A, compared once"
    assert "confidence_threshold 9.0 (run: 7.0)" in found["notes"]["strict"]
    assert "annotator_a cue/a" in found["notes"]["run"] and "0 traces failed" in found["notes"]["run"]
    assert found["notes"]["rater-1"] == "40 segments in the sheet, 1 not rated"
    rated = [row for row in found["pairs"] if row["b"] == "rater-1"]
    assert {(row["segments"], row["only_a"], row["only_b"]) for row in rated} == {(39, 57, 0)}
    assert {row["traces"] for row in found["weights"] if row["b"] == "rater-1"} == {9}
    assert sum(row["segments"] for row in found["rules"] if row["panel"] == "run") == 96
    manifest = ArtifactStore(config.storage).manifest(agreement)
    assert set(manifest.files) >= {"agreement.json", "agreement.md", "per_label.csv", "kappas.png", "label_kappas.svg"}
    assert {parent.stage for parent in manifest.parents} == {"candidates", "annotations"}


def test_only_the_columns_that_it_needs_are_read(config, candidates, panels, sheet, monkeypatch):
    """The rest of a candidate or of a reply is tens of kilobytes."""
    read, original = {}, ArtifactStore.read_columns

    def noted(self, ref, file_name, table, columns):
        read[table.name] = set(columns)
        return original(self, ref, file_name, table, columns)

    monkeypatch.setattr(ArtifactStore, "read_columns", noted)
    monkeypatch.setattr(ArtifactStore, "read_table", lambda *_: pytest.fail("a whole table was read"))
    compare_annotations.run_here(config.model_copy(update={"seed": 7}), candidates, panels)
    needed = {"trace_id", "question_id", "polarity", "stratum", "segments"}
    assert read["candidates"] == needed and read["raw_annotations"] == {"role", "model"}
    compare_annotations.run_here(with_sheets(config, sheet).model_copy(update={"seed": 7}), candidates, panels)
    assert read["candidates"] == needed | {"completion"}


def test_noise_costs_agreement(config, candidates, panels):
    found = read_agreement(config, compare_annotations.run_here(config, candidates, panels))
    kappas = {
        (row["a"], row["b"]): row["kappa"]
        for row in found["pairs"]
        if row["level"] == "label" and row["rule"] == "entailment"
    }
    assert kappas["quiet A", "quiet B"] > kappas["run A", "run B"]


def test_with_hidden_labels_it_says_whose_matrices_are_compared(config, candidates, panels):
    hidden = config.model_copy(update={"estimate": config.estimate.model_copy(update={"estimator": "hidden"})})
    notes = read_agreement(hidden, compare_annotations.run_here(hidden, candidates, panels))["notes"]
    assert "those of em_converged" in notes["estimate.estimator"]
    plain = read_agreement(config, compare_annotations.run_here(config, candidates, panels))["notes"]
    assert "estimate.estimator" not in plain


def test_the_comparison_is_found_again_until_a_sheet_changes(config, candidates, panels, sheet):
    settings = with_sheets(config, sheet)
    edit(sheet, lambda number, row: row | {"label_1": "analogy"})
    first = compare_annotations.produce(settings, candidates, panels)
    again = compare_annotations.produce(settings, candidates, panels)
    assert (first.was_cached, again.was_cached) == (False, True)
    edit(sheet, lambda number, row: row | {"label_1": "framing"})
    assert compare_annotations.work(settings, candidates, panels).key != first.ref.key


def test_wrong_rows_of_a_sheet_stop_it_before_anything_is_written(config, candidates, panels, sheet):
    edit(sheet, lambda number, row: row | {"label_2": "retreival"} if number == 4 else row)
    with pytest.raises(DataError, match=r"rater-1\.csv .*\n.*row 6, column label_2: 'retreival'.*'retrieval'"):
        compare_annotations.run_here(with_sheets(config, sheet), candidates, panels)
    with pytest.raises(DataError, match=r"compare\.sheets: .*gone\.csv is not a file"):
        compare_annotations.run_here(with_sheets(config, sheet.with_name("gone.csv")), candidates, panels)


@pytest.mark.parametrize(
    ("compare", "says"),
    [
        ({"panels": [{"name": "run"}]}, "'run' names two annotation sets"),
        ({"panels": [{"name": "a"}], "sheets": ["x/a.csv"]}, "'a' names two annotation sets"),
        ({"panels": [{"name": "A B"}]}, "compare.panels.0.name"),
        (
            {"panels": [{"name": "a", "anotate": {}}]},
            "compare.panels.0.anotate: no such field; did you mean 'annotate'?",
        ),
        ({"panels": [{"name": "a", "annotate": {"x": 1}}]}, "compare.panels.0.annotate.x: no such field"),
        ({"num_resamples": 1}, "compare.num_resamples: Input should be greater than or equal to 100"),
    ],
)
def test_a_wrong_compare_section_is_named(compare, says):
    with pytest.raises(ConfigError) as caught:
        parse_config({"questions": {"train": "nq_open"}, "compare": compare})
    assert says in str(caught.value)


def test_the_comparison_changes_no_other_fingerprint(config):
    assert (
        config.fingerprint()
        == config.model_copy(update={"compare": RunConfig.model_fields["compare"].default}).fingerprint()
    )
    assert "panels" in json.dumps(config.compare.fingerprint())

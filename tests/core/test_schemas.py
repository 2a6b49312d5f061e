"""Table contracts: bad rows are found at once, each with its reason, and good rows come back as they were."""

from pathlib import Path

import pandas as pd
import pytest

import mralign_core
from mralign_core.errors import DataError
from mralign_core.schemas.annotations import ANNOTATIONS, RULES
from mralign_core.schemas.base import QUARANTINE_COLUMNS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.digests import module_closure
from mralign_core.storage.tables import known_tables

GOOD = {
    "question_id": "q1",
    "question": "Who wrote Emma?",
    "answers": ["Jane Austen"],
    "source": "test",
    "split": "train",
    "stratum": "",
    "scoring": "exact_match",
    "options": [],
    "incorrect_answers": [],
}
SEGMENT = {"start": 0, "end": 2, "token_start": 0, "token_end": 1}
TRACE = {
    "trace_id": "t1",
    "question_id": "q1",
    "question": "Who?",
    "answers": ["x"],
    "stratum": "",
    "polarity": "positive",
    "draw": 0,
    "prompt": "Who?",
    "completion": "abcdef",
    "prompt_ids": [1],
    "completion_ids": [1, 2, 3],
    "end_token_id": None,
    "answer": "x",
    "segments": [SEGMENT],
    "reasoning_tokens": 2,
}


def frame(*rows):
    return pd.DataFrame(list(rows)).astype(object)


def test_good_rows_pass_unchanged():
    rows = frame(GOOD, {**GOOD, "question_id": "q2"})
    good, quarantined = QUESTIONS.validate(rows)
    pd.testing.assert_frame_equal(good, rows[list(QUESTIONS.columns)])
    assert quarantined.empty
    assert list(quarantined.columns) == QUARANTINE_COLUMNS


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("question", " ", "must be non-empty text"),
        ("question", None, "must not be empty"),
        ("answers", ["x", ""], "must be a list of non-empty texts"),
        ("split", "dev", "must be one of train, eval"),
        ("scoring", "bleu", "must be one of exact_match, number, option, truthful, claims"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(field, value, reason):
    bad = {**GOOD, "question_id": "q2", field: value}
    good, quarantined = QUESTIONS.validate(frame(GOOD, bad, {**GOOD, "question_id": "q3"}))
    assert good["question_id"].tolist() == ["q1", "q3"]
    assert set(quarantined["row"]) == {1}
    assert quarantined["row_id"].tolist()[0] == "q2"
    assert (field, reason) in set(zip(quarantined["column"], quarantined["reason"], strict=True))


def test_all_bad_rows_are_found_at_once_and_all_repeats_of_an_id():
    rows = frame(GOOD, GOOD, {**GOOD, "question_id": "q2", "question": "", "split": "dev"})
    good, quarantined = QUESTIONS.validate(rows)
    assert good.empty
    assert set(quarantined["row"]) == {0, 1, 2}
    assert len(quarantined[quarantined["row"] == 2]) == 2
    with pytest.raises(DataError, match=r"table 'questions': 3 bad row\(s\)(.|\n)*row 0 \(q1\): question_id must be"):
        QUESTIONS.require(rows)


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="table 'questions' lacks column\\(s\\) answers; it has question_id"):
        QUESTIONS.validate(frame(GOOD).drop(columns="answers"))


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [{**SEGMENT, "end": 0}],
        [{**SEGMENT, "end": 7}],
        [{**SEGMENT, "token_end": 4}],
        [SEGMENT, {**SEGMENT, "start": 1, "end": 3, "token_start": 1, "token_end": 2}],
        [{**SEGMENT, "start": 3, "end": 5, "token_start": 1, "token_end": 2}, SEGMENT],
    ],
    ids=["none", "empty", "beyond the text", "beyond the tokens", "overlapping", "going back"],
)
def test_segments_must_be_ordered_spans(segments):
    assert CANDIDATES.validate(frame(TRACE)).quarantined.empty
    good, quarantined = CANDIDATES.validate(frame(TRACE, {**TRACE, "trace_id": "t2", "segments": segments}))
    assert good["trace_id"].tolist() == ["t1"]
    assert quarantined["column"].tolist() == ["(row)"]
    assert quarantined["reason"].tolist() == ["segments must be ordered spans inside the completion"]


def test_only_a_question_to_evaluate_on_may_have_no_answer():
    without = frame(
        {**GOOD, "split": "train", "answers": []}, {**GOOD, "question_id": "q2", "split": "eval", "answers": []}
    )
    good, quarantined = QUESTIONS.validate(without)
    assert good["question_id"].tolist() == ["q2"]
    assert quarantined["reason"].tolist() == ["a question to align on needs an answer"]


def test_labels_and_confidences_must_pair_up():
    row = {"trace_id": "t", "segment": 0, "step": 0, "labels": ["framing"], "confidences": [9.0], "rule": "agree"}
    row |= {f"{name}_{who}": [] for name in ("labels", "confidences") for who in "ab"}
    assert ANNOTATIONS.validate(frame(row)).quarantined.empty
    _, quarantined = ANNOTATIONS.validate(frame({**row, "confidences": []}))
    assert quarantined["reason"].tolist() == ["labels and confidences must pair up"]
    _, quarantined = ANNOTATIONS.validate(frame({**row, "labels": ["framing"] * 2, "confidences": [1.0] * 2}))
    assert quarantined["reason"].tolist() == ["must be at most two distinct labels"]
    assert len(ANNOTATIONS.validate(frame(row, row)).good) == 0


@pytest.mark.parametrize("column", ["confidences", "confidences_a", "confidences_b"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 10.5, None, "9"])
def test_a_confidence_is_a_number_from_0_to_10(column, odd):
    row = {"trace_id": "t", "segment": 0, "step": 0, "rule": "agree"}
    for who in ("", "_a", "_b"):
        row |= {f"labels{who}": ["framing", "analogy"], f"confidences{who}": [0.0, 10.0]}
    bad = {**row, "segment": 1, column: [9.0, odd]}
    good, quarantined = ANNOTATIONS.validate(frame(row, bad))
    assert good["segment"].tolist() == [0]
    assert quarantined[["column", "reason"]].to_numpy().tolist() == [[column, "must be numbers from 0 to 10"]]


@pytest.mark.parametrize("weight", [float("-inf"), float("inf"), float("nan")])
def test_a_weight_is_finite_and_may_have_a_sign(weight):
    row = {"trace_id": "t", "segment": 0, "weight": -1.0, "ratio": 1.0, "clipped": False}
    row |= {"support": 3.0, "weight_low": None, "weight_high": None}
    assert SEGMENT_WEIGHTS.validate(frame(row)).quarantined.empty
    assert len(SEGMENT_WEIGHTS.validate(frame({**row, "weight": weight})).good) == 0


@pytest.mark.parametrize("table", known_tables().values(), ids=lambda table: table.name)
def test_an_empty_table_keeps_its_columns_through_arrow(table):
    empty = pd.DataFrame(columns=list(table.columns))
    back = table.from_arrow(table.to_arrow(table.require(empty)))
    assert list(back.columns) == list(table.columns)
    assert back.empty


def test_rows_survive_arrow():
    back = CANDIDATES.from_arrow(CANDIDATES.to_arrow(frame(TRACE)))
    assert back.iloc[0].to_dict() == TRACE


@pytest.mark.parametrize(
    ("module", "used", "unused"),
    [
        ("mralign_core.generation.sampling", {"generations"}, {"annotations", "segment_weights", "ablation"}),
        ("mralign_core.annotation.annotate", {"annotations"}, {"generations", "segment_weights", "scores", "ablation"}),
        ("mralign_core.estimation.weights", {"segment_weights"}, {"generations", "scores", "ablation"}),
        ("mralign_core.ablation.paired", {"ablation"}, {"generations", "training_metrics"}),
    ],
)
def test_a_new_column_changes_only_the_keys_of_what_uses_its_table(module, used, unused):
    """A key holds the digests of every module that the artifact's code imports."""
    names = {name.rpartition(".")[2] for name in module_closure(module) if name.startswith("mralign_core.schemas.")}
    assert used <= names
    assert not unused & names


def test_each_rule_that_decides_labels_is_explained_where_it_is_shown():
    core = Path(mralign_core.__file__).parent
    page = (core / "reporting" / "report.html.jinja").read_text(encoding="utf-8")
    script = (core / "workbench" / "static" / "trace.js").read_text(encoding="utf-8")
    for rule in RULES:
        assert f'"{rule}": "' in page and f'\n  {rule}: "' in script

"""The questions artifact: what it counts, and what stands beside it."""

import json

import pytest

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.storage import ArtifactStore
from tasks.prepare import OVERLAP, check_evaluation, load_evaluation_questions, load_questions


@pytest.fixture
def made(tmp_path):
    """The store and the artifact of two sets, one question of which stands in both."""
    texts = {"train": ["Who wrote Emma?", "Who wrote Ulysses?"], "eval": ["who wrote emma", "Who wrote Middlemarch?"]}
    for role, questions in texts.items():
        rows = [json.dumps({"question": text, "answer": "x"}) for text in questions]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(rows))
    section = {role: str(tmp_path / f"{role}.jsonl") for role in texts}
    config = RunConfig.model_validate(
        {"storage": {"root": str(tmp_path / "store")}, "questions": {**section, "on_overlap": "drop"}}
    )
    return ArtifactStore(config.storage), load_questions.run_here(config), config


def test_counts_are_by_split_and_set_and_tell_what_was_taken_out(made):
    store, ref, _ = made
    assert store.manifest(ref).counts == {"train": 1, "train train": 1, "taken out of train": 1}
    held_out = load_evaluation_questions.run_here(made[2])
    assert store.manifest(held_out).counts == {"eval": 2, "eval eval": 2}
    assert store.read_table(held_out, "questions.parquet")["question_id"].tolist() == ["eval-1", "eval-2"]


def test_what_was_taken_out_is_listed_beside_the_questions(made):
    store, ref, _ = made
    (row,) = json.loads(store.open_file(ref, OVERLAP).read_text())
    assert (row["question_id"], row["eval_question_id"]) == ("train-1", "eval-1")
    assert (row["question"], row["eval_question"]) == ("Who wrote Emma?", "who wrote emma")
    assert store.read_table(ref, "questions.parquet")["question_id"].tolist() == ["train-2"]


def test_what_evaluation_needs_is_looked_at_before_anything_is_spent(made, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    base = made[2].model_dump()
    check_evaluation(made[2])
    searches = {"evaluate": {"retrieval": {"corpus": str(tmp_path / "nowhere")}}}
    held_out = {"path": str(tmp_path / "eval.jsonl"), "scoring": "truthful"}
    judges = {"questions": {**base["questions"], "eval": held_out}, "judge": {"endpoints": ["openai/gpt-4o"]}}
    with pytest.raises(DataError, match=r"evaluate\.retrieval\.corpus: .*nowhere is not there"):
        check_evaluation(RunConfig.model_validate({**base, **searches}))
    with pytest.raises(ConfigError, match=r"judge\.endpoints\.0.*OPENAI_API_KEY"):
        check_evaluation(RunConfig.model_validate({**base, **judges}))
    for text, says in (("item,verdict\nabc,maybe\n", "row 2, column verdict: 'maybe'"), (None, "is not a file")):
        sheet = tmp_path / f"sheet{bool(text)}.csv"
        sheet.write_text(text) if text else None
        people = RunConfig.model_validate({**base, "evaluate": {"people_sheet": str(sheet)}})
        with pytest.raises(DataError, match=rf"evaluate\.people_sheet: .*{says}" if not text else f"(?s){says}"):
            check_evaluation(people)

"""An export back in a store: the same candidates, labels, matrices and weights, to the last byte."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from flows.commands.cli import _check_traces
from flows.commands.export_data import export_data, find_data, stated_licences
from mralign_core.annotation.annotate import FAILURE_COLUMNS
from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, DataError, NoCandidatesError
from mralign_core.exporting.export_file import ExportFile
from mralign_core.exporting.paths import EXPORT_FILE
from mralign_core.exporting.restoring import _write_candidates, restore_candidates, restore_labels
from mralign_core.generation.funnel import FUNNEL_COLUMNS
from mralign_core.models.load import load_tokenizer
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage.digests import directory_entries
from mralign_core.storage.tables import TableWriter
from tests.exported_run import config_of, make_run

LABELS_TOO = {"source": "traces"}


def restored(run, export, folder, annotate=None, **sections):
    annotate = annotate or {**LABELS_TOO, "annotator_a": "openai/nobody-asks-it"}
    return make_run(config_of(folder, Path(run.config.model.path), export, annotate=annotate, **sections))


def evaluated_on(**columns):
    empty = {"options": [], "incorrect_answers": [], "answers": [], "source": "asked"}
    return pd.DataFrame([{**empty, **columns}] if columns else [], columns=list(QUESTIONS.columns))


def restore(run, export, folder, held_out=None, on_overlap="refuse", tokenizer=None, **bounds):
    folder.mkdir(parents=True)
    return restore_candidates(
        export,
        folder,
        tokenizer or load_tokenizer(run.config.model.path),
        run.config.generate.model_copy(update=bounds),
        evaluated_on() if held_out is None else held_out,
        on_overlap,
    )


def test_traces_labels_matrices_and_weights_come_back_with_their_digests(run, exports, tmp_path):
    back = restored(run, exports["parquet"], tmp_path)
    for name in ("candidates", "transitions", "weights"):
        assert back.refs[name].sha256 == run.refs[name].sha256, name
    ours, theirs = (each.store.manifest(each.refs["annotations"]).files for each in (run, back))
    assert theirs["annotations.parquet"] == ours["annotations.parquet"]
    assert back.store.manifest(back.refs["annotations"]).cost_usd == 0
    replies = back.store.read_table(back.refs["annotations"], "raw_annotations.parquet")
    assert replies.empty, "nobody was asked"
    assert back.refs["candidates"].key != run.refs["candidates"].key


def test_what_was_imported_from_an_export_is_exported_alike_and_keeps_its_sets_and_licences(run, exports, tmp_path):
    first = tmp_path / "first"
    source = find_data(run.config, {}, "")
    licences = stated_licences(["my traces=cc-by-4.0"])
    export_data(run.config, source, first, "parquet", licences, lambda done, total: None)
    back = restored(run, first, tmp_path / "back")
    second = tmp_path / "second"
    source = find_data(back.config, {}, "")
    made = export_data(back.config, source, second, "parquet", stated_licences([]), lambda done, total: None)
    assert [(each.name, each.licence) for each in made.sources] == [("my traces", "cc-by-4.0")]
    assert made.annotators == {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    names = [name for name in made.files if name.startswith(("data/", "run/"))]
    assert {name: (first / name).read_bytes() for name in names} == {n: (second / n).read_bytes() for n in names}
    again = restored(run, second, tmp_path / "again")
    assert again.refs["candidates"].sha256 == run.refs["candidates"].sha256


def replace_it(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    text = (folder / EXPORT_FILE).read_text()
    (folder / EXPORT_FILE).write_text(text.replace('"licence": ""', '"licence": "mit"'))


def lose_a_file(folder, _):
    (folder / "data" / "train-00000.parquet").unlink()


def export_for_a_trainer(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other.parent / "axolotl", folder)


def lose_it(folder, _):
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [replace_it, lose_a_file, export_for_a_trainer, lose_it])
def test_nothing_is_told_of_a_folder_that_is_not_what_was_imported(imported, exports, tmp_path, caplog, change):
    back, folder = imported
    change(folder, exports["parquet"])
    source = find_data(back.config, {}, "")
    assert "are not known" in caplog.text
    made = export_data(back.config, source, tmp_path / "out", "parquet", stated_licences([]), lambda done, total: None)
    assert [(each.name, each.licence) for each in made.sources] == [("", "")]
    assert made.annotators == {"labels": "from an export that is not there any more, or is another one now"}


def test_what_is_named_by_hand_is_known_by_the_folder_that_it_came_from(imported):
    back, _ = imported
    for name in ("candidates", "annotations"):
        ref = back.refs[name]
        source = find_data(back.config, {name: f"{ref.stage}/{ref.key}"}, "")
        assert set(source.run.set_of_question.values()) == {"my traces"}
        assert source.run.annotators["adjudicator"] == "cue/adjudicator"


@pytest.fixture
def imported(run, exports, tmp_path):
    """A run from a copy of an export, and that copy, which a test may change."""
    shutil.copytree(exports["parquet"], tmp_path / "copy")
    return restored(run, tmp_path / "copy", tmp_path / "imported"), tmp_path / "copy"


def test_several_files_come_back_as_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mralign_core.exporting.data_set.ROWS_OF_FILE", 5)
    several = tmp_path / "several"
    export_data(run.config, find_data(run.config, {}, ""), several, "parquet", stated_licences([]), lambda *_: None)
    restore(run, several, tmp_path / "back")
    stored = run.store.open_directory(run.refs["candidates"])
    for path in stored.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    ids = run.store.read_table(run.refs["candidates"], "candidates.parquet")["trace_id"].tolist()
    labels, failures = restore_labels(several, ids[3:8])
    assert labels["trace_id"].unique().tolist() == ids[3:8] and not failures


@pytest.mark.parametrize("rows", [1, 3, 13])
def test_row_groups_are_those_of_the_stored_file(run, tmp_path, monkeypatch, rows):
    """Stages write some rows at a time, and large rows in small groups: the file has other bytes for each."""
    frame = run.store.read_table(run.refs["candidates"], "candidates.parquet")
    monkeypatch.setattr("mralign_core.storage.tables.ROW_GROUP_BYTES", 40_000)
    with TableWriter(tmp_path / "stored.parquet", CANDIDATES) as table:
        for start in range(0, len(frame), rows):
            table.add(frame.iloc[start : start + rows])
    metadata = pq.read_metadata(tmp_path / "stored.parquet")
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert len(groups) > 1
    _write_candidates(tmp_path / "again", iter(frame.to_dict("records")), groups)
    assert (tmp_path / "again" / "candidates.parquet").read_bytes() == (tmp_path / "stored.parquet").read_bytes()


def test_bounds_of_the_new_run_hold_and_its_yield_follows_that_of_the_selection(run, exports, tmp_path):
    counts = restore(run, exports["parquet"], tmp_path / "kept", max_segments=3)
    assert counts == {"positive": 4, "negative": 3}
    funnel = pd.read_json(tmp_path / "kept" / "funnel.json")
    before = pd.read_json(exports["parquet"] / "run" / "funnel.json")
    assert funnel[FUNNEL_COLUMNS].iloc[: len(before)].equals(before[FUNNEL_COLUMNS])
    assert funnel.iloc[-1][["kept", "dropped", "reason"]].tolist() == [7, 6, "more than 3 segments"]
    with pytest.raises(NoCandidatesError, match="more than 1 segments"):
        restore(run, exports["parquet"], tmp_path / "none", min_segments=1, max_segments=1)


def test_questions_that_are_evaluated_on_are_refused_or_dropped(run, exports, tmp_path):
    same = evaluated_on(question_id="e", question="which TOWN is 3")
    with pytest.raises(DataError, match="'e' is 'T3'"):
        restore(run, exports["parquet"], tmp_path / "refused", held_out=same)
    with pytest.raises(DataError, match="'T3': make them distinct"):
        restore(run, exports["parquet"], tmp_path / "id", held_out=evaluated_on(question_id="T3", question="Other?"))
    counts = restore(run, exports["parquet"], tmp_path / "dropped", held_out=same, on_overlap="drop")
    assert counts == {"positive": 6, "negative": 5}


def test_another_models_tokens_are_refused_by_the_trace(run, exports, tmp_path, other_tokenizer):
    with pytest.raises(DataError, match=r"tokens of the prompt of trace 'T0' .* give the traces as JSONL"):
        restore(run, exports["parquet"], tmp_path / "out", tokenizer=other_tokenizer)


@pytest.fixture
def other_tokenizer(run):
    """One with as many tokens, of which two stand for other letters."""
    tokenizer = load_tokenizer(run.config.model.path)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    letters = state["model"]["vocab"]
    letters["T"], letters["W"] = letters["W"], letters["T"]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return tokenizer


def damage_data(folder):
    path = folder / "data" / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def lose_funnel(folder):
    (folder / "run" / "funnel.json").unlink()


def cut_export_file(folder):
    (folder / EXPORT_FILE).write_text((folder / EXPORT_FILE).read_text()[:-40])


def climb_out(folder):
    text = (folder / EXPORT_FILE).read_text()
    (folder / EXPORT_FILE).write_text(text.replace('"data/train-00000.parquet"', '"../train-00000.parquet"'))


def empty_a_row_group(folder):
    text = (folder / EXPORT_FILE).read_text()
    (folder / EXPORT_FILE).write_text(re.sub(r'"row_groups": \[\s*\d+', '"row_groups": [0', text))


def raise_layout(folder):
    text = (folder / EXPORT_FILE).read_text()
    (folder / EXPORT_FILE).write_text(text.replace('"layout": 1', '"layout": 2'))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damage_data, r"data/train-00000\.parquet has another content"),
        (lose_funnel, r"run/funnel\.json is missing"),
        (cut_export_file, "is damaged"),
        (climb_out, "is damaged"),
        (empty_a_row_group, r"is damaged: row_groups\.0"),
        (raise_layout, "has layout 2, and this version reads 1"),
    ],
)
def test_an_export_that_is_not_as_it_was_written_is_refused_before_anything_starts(
    run, exports, tmp_path, change, says
):
    folder = tmp_path / "copy"
    shutil.copytree(exports["parquet"], folder)
    change(folder)
    config = config_of(tmp_path, Path(run.config.model.path), folder / EXPORT_FILE)
    with pytest.raises(DataError, match=says):
        _check_traces(config)


def test_an_export_that_says_it_has_more_traces_than_were_read_is_refused(run, exports, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exports["parquet"], folder)
    told = ExportFile.model_validate_json((folder / EXPORT_FILE).read_bytes())
    files = {name: entry.model_copy(update={"rows": 14}) for name, entry in told.files.items()}
    told.model_copy(update={"files": files}).write(folder)
    with pytest.raises(DataError, match="have 14 traces, and 13 were read"):
        restore(run, folder, tmp_path / "out")


def test_an_export_for_a_trainer_is_no_file_of_traces(run, exports, tmp_path):
    config = config_of(tmp_path, Path(run.config.model.path), exports["axolotl"] / EXPORT_FILE)
    with pytest.raises(DataError, match="exported with --format axolotl"):
        _check_traces(config)


def test_labels_of_no_export_of_none_or_of_another_label_set_are_refused(run, exports, tmp_path):
    model = Path(run.config.model.path)
    with pytest.raises(ConfigError, match="is no export, and has no labels"):
        _check_traces(config_of(tmp_path, model, Path(run.config.generate.traces_path), annotate=LABELS_TOO))
    names = ("retrieval", "chaining")
    (tmp_path / "mine.yaml").write_text(
        json.dumps({"labels": [{"name": name, "definition": f"it is {name}"} for name in names]})
    )
    other = {**LABELS_TOO, "label_set": str(tmp_path / "mine.yaml")}
    with pytest.raises(DataError, match=r"labels of another label set, such as 'backtracking'"):
        _check_traces(config_of(tmp_path, model, exports["parquet"], annotate=other))
    with pytest.raises(ValidationError, match=r"generate\.source is 'sample': set it to 'traces'"):
        RunConfig.model_validate({"questions": {"train": "nq_open"}, "annotate": LABELS_TOO})


def test_traces_without_labels_are_left_out_again_and_not_asked_about(run, exports, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exports["parquet"], folder)
    path = folder / "data" / "train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["segments"] = [{**segment, "rule": None} for segment in rows[3]["segments"]]
    pq.write_table(pq.read_table(path).from_pylist(rows, schema=pq.read_schema(path)), path)
    told = ExportFile.model_validate_json((folder / EXPORT_FILE).read_bytes())
    entries = {name: directory_entries(folder)[name] for name in told.files}
    told.model_copy(update={"files": entries}).write(folder)
    ids = [row["trace_id"] for row in rows]
    labels, failures = restore_labels(folder, ids[:5])
    assert labels["trace_id"].unique().tolist() == [*ids[:3], ids[4]]
    assert [(each["trace_id"], each["is_final"]) for each in failures] == [(ids[3], True)]
    assert list(failures[0]) == FAILURE_COLUMNS
    with pytest.raises(DataError, match="has no trace 'T9'"):
        restore_labels(folder, ["T9"])

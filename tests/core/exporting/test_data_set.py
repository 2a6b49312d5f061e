"""A run as a data set: what `load_dataset` reads is what the store has, and a folder is there whole or not at all."""

import doctest
import json
import os
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import load_dataset

from flows.commands.export_data import DataSource, export_data, facts_of, find_data, stated_licences
from mralign_core.errors import ArtifactError, ConfigError, DataError
from mralign_core.exporting import hub
from mralign_core.exporting.data_set import Licences
from mralign_core.exporting.export_file import ExportFile
from mralign_core.exporting.hub import push_data_set
from mralign_core.exporting.new_folder import BEING_WRITTEN, folder_at_once
from mralign_core.exporting.paths import EXPORT_FILE
from mralign_core.schemas.annotations import ANNOTATIONS, RULES
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import write_table
from mralign_core.training.examples import build_examples
from tests.core.exporting.conftest import NOTHING_STATED

END = 256
"""The id of ``<|end|>``."""


def read(folder):
    return load_dataset(str(folder), split="train")


def tables(run):
    names = ("candidates", "annotations", "weights")
    return [run.store.read_table(run.refs[name], f"{name}.parquet") for name in names]


def export(run, target, data_format="parquet", licences=NOTHING_STATED, config=None, named=None):
    config = config or run.config
    source = find_data(config, named or {}, "")
    return export_data(config, source, target, data_format, licences, lambda done, total: None)


def test_what_load_dataset_reads_is_what_the_store_has(run, exports):
    candidates, annotations, weights = tables(run)
    rows = read(exports["parquet"])
    assert rows["trace_id"][:] == candidates["trace_id"].tolist()
    for name in CANDIDATES.columns:
        if name not in ("segments", "completion_ids"):
            assert rows[name][:] == candidates[name].tolist(), name
    examples = build_examples(candidates, weights, end_token_id=END, max_length=10**9).kept
    assert rows["completion_ids"][:] == [example.completion_ids for example in examples]
    assert rows["completion_weights"][:] == [example.weights for example in examples]
    assert len({weight for example in examples for weight in example.weights}) > 2
    assert rows["label"][:] == [example.is_positive for example in examples]
    segments = [segment for row in rows["segments"][:] for segment in row]
    for table, frame in ((ANNOTATIONS, annotations), (SEGMENT_WEIGHTS, weights)):
        for name in [column for column in table.columns if column not in ("trace_id", "segment")]:
            told = [None if value is None or value != value else value for value in frame[name]]
            assert [segment[name] for segment in segments] == told, name
    texts = [row["completion"][s["start"] : s["end"]] for row in rows for s in row["segments"]]
    assert any("🎉" in text for text in texts) and any("\x00" in text for text in texts)
    assert set(rows["question_set"][:]) == {"my traces"}


def test_the_card_is_read_by_datasets_and_says_what_is_not_stated(run, exports):
    card = (exports["parquet"] / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in front
    assert front["dataset_info"]["splits"][0]["num_examples"] == len(read(exports["parquet"]))
    assert "| my traces | not stated | 6 | 13 |" in card and "as a whole: not stated" in card
    for name in read(exports["parquet"]).column_names:
        assert name in card, f"{name} is not explained"
    assert run.refs["candidates"].sha256 in card and "cue/adjudicator" in card
    rules = next(line for line in card.splitlines() if line.startswith("| `segments.rule`"))
    assert all(f"`{rule}`" in rules for rule in RULES)


def test_licences_that_are_stated_stand_on_the_card(run, tmp_path):
    made = export(run, tmp_path / "out", licences=stated_licences(["my traces=cc-by-4.0", "apache-2.0"]))
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert "| my traces | cc-by-4.0 | 6 | 13 |" in card
    assert not [name for name, _ in facts_of(made, tmp_path, []) if name == "no licence stated"]
    with pytest.raises(DataError, match=r"--licence sciq=…: no trace is of .* there are my traces"):
        export(run, tmp_path / "other", licences=Licences("", {"sciq": "mit"}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("options", [["=mit"], ["a="], [""], ["mit", "apache-2.0"], ["a=mit", "a=mit"], ["a=m\udce9"]])
def test_a_licence_that_says_nothing_is_no_text_or_is_said_twice_is_refused(options):
    with pytest.raises(ConfigError, match="--licence"):
        stated_licences(options)


def test_provenance_names_every_artifact_and_the_digest_of_every_file(run, exports):
    told = ExportFile.model_validate_json((exports["parquet"] / EXPORT_FILE).read_bytes())
    names = {str(path.relative_to(exports["parquet"])) for path in exports["parquet"].rglob("*") if path.is_file()}
    assert names == {*told.files, "README.md", EXPORT_FILE}
    assert {name: each.ref.sha256 for name, each in told.artifacts.items()} == {
        name: ref.sha256 for name, ref in [*run.refs.items(), ("model", model_of(run))] if name in told.artifacts
    }
    assert told.artifacts["annotations"].fingerprint["annotator_a"]["model"] == "cue/a"
    assert told.artifacts["candidates"].code_version and told.artifacts["candidates"].package_versions["torch"]
    assert str(run.config.storage.root) not in (exports["parquet"] / EXPORT_FILE).read_text()


def test_a_model_that_was_moved_or_replaced_in_the_config_keeps_its_name_and_no_path(run, tmp_path):
    gone = run.config.model_copy(update={"model": run.config.model.model_copy(update={"path": "/gone/a-successor"})})
    made = export(run, tmp_path / "out", config=gone)
    assert made.base_model == "model"
    told = (tmp_path / "out" / EXPORT_FILE).read_text() + (tmp_path / "out" / "README.md").read_text()
    assert "a-successor" not in told and str(Path(run.config.model.path).parent) not in told


def model_of(run):
    return next(one for one in run.store.manifest(run.refs["candidates"]).parents if one.stage == "model")


def test_the_same_run_gives_the_same_bytes(run, exports, tmp_path):
    export(run, tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.*"):
        if path.is_file():
            other = exports["parquet"] / path.relative_to(tmp_path / "again")
            assert other.read_bytes() == path.read_bytes(), path


def test_a_folder_that_holds_anything_is_not_written_to(run, exports, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt", exports["parquet"]):
        before = sorted(target.rglob("*"))
        with pytest.raises(ConfigError, match="name a new or empty"):
            export(run, target)
        assert sorted(target.rglob("*")) == before
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_keeps_its_permissions(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    target.chmod(0o2777)
    with folder_at_once(target) as folder:
        (folder / "data").mkdir()
    assert (target / "data").exists() and target.stat().st_mode & 0o7777 == 0o2777


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    with pytest.raises(ConfigError, match="is a mount point"), folder_at_once(tmp_path):
        pytest.fail("it began to write")


def test_an_export_that_fails_or_is_killed_leaves_nothing_that_looks_whole(tmp_path):
    target = tmp_path / "out"

    def fail():
        with folder_at_once(target) as folder:
            (folder / "data").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    child = os.fork()
    if not child:
        with folder_at_once(target) as folder:
            (folder / EXPORT_FILE).write_text("{}")
            os._exit(9)
    os.waitpid(child, 0)
    assert not target.exists()
    assert [path.name.endswith(BEING_WRITTEN) for path in tmp_path.iterdir()] == [True]


def test_a_run_without_labels_or_weights_is_exported_and_what_it_lacks_is_said(run, tmp_path):
    config = run.config.model_copy(update={"name": "another"})
    ref = run.refs["candidates"]
    source = find_data(config, {"candidates": f"{ref.stage}/{ref.key}"}, "")
    assert len(source.missing) == 2 and "annotations" in source.missing[0]
    made = export_data(config, source, tmp_path / "out", "parquet", NOTHING_STATED, lambda done, total: None)
    rows = read(tmp_path / "out")
    assert rows["completion_weights"][:] == [None] * 13
    assert {segment["rule"] for row in rows["segments"][:] for segment in row} == {None}
    assert ("traces without labels", "13") in facts_of(made, tmp_path, source.missing)
    export_data(config, source, tmp_path / "trl", "trl", NOTHING_STATED, lambda done, total: None)
    assert read(tmp_path / "trl")["segments"][:] == [[]] * 13  # plain KTO, on all of them


def test_a_trace_that_annotators_failed_on_is_kept_without_labels_and_left_out_for_trainers(run, tmp_path):
    candidates, annotations, _ = tables(run)
    last = candidates["trace_id"].iloc[-2]
    folder = tmp_path / "labels"
    write_table(folder, "annotations.parquet", annotations[annotations["trace_id"] != last], ANNOTATIONS)
    ref = run.store.publish("annotations", "fewer", folder, parents=[run.refs["candidates"]], fingerprint={})
    source = find_data(run.config, {}, "")
    source = DataSource(source.run._replace(annotations=ref, weights=None), source.model, [])
    export_data(run.config, source, tmp_path / "all", "parquet", NOTHING_STATED, lambda done, total: None)
    rules = {row["trace_id"]: {segment["rule"] for segment in row["segments"]} for row in read(tmp_path / "all")}
    assert len(rules) == 13 and [name for name, found in rules.items() if found == {None}] == [last]
    made = export_data(run.config, source, tmp_path / "ax", "axolotl", NOTHING_STATED, lambda done, total: None)
    assert len(read(tmp_path / "ax")) == 12
    assert ("traces left out, which have no labels", "1") in facts_of(made, tmp_path, [])


def test_labels_of_other_traces_are_refused(run, tmp_path):
    candidates = pd.DataFrame(tables(run)[0]).iloc[:-1]
    folder = tmp_path / "fewer"
    write_table(folder, "candidates.parquet", candidates, CANDIDATES)
    ref = run.store.publish("candidates", "fewer", folder, parents=[], fingerprint={}, table="candidates")
    with pytest.raises(ArtifactError, match=r"annotations .* was made from candidates"):
        export(run, tmp_path / "out", named={"candidates": f"candidates/{ref.key}"})
    source = find_data(run.config, {}, "")
    stray = run.store.publish("annotations", "stray", labels_of(run), parents=[], fingerprint={})
    source = DataSource(source.run._replace(candidates=ref, annotations=stray, weights=None), source.model, [])
    with pytest.raises(ArtifactError, match="has rows of trace"):
        export_data(run.config, source, tmp_path / "out", "parquet", NOTHING_STATED, lambda done, total: None)
    assert not (tmp_path / "out").exists()


def labels_of(run):
    return run.store.open_directory(run.refs["annotations"])


def test_a_model_that_is_out_of_reach_costs_the_end_token_and_says_so(run, tmp_path, caplog):
    source = find_data(run.config, {}, "")
    source = DataSource(source.run._replace(model=None), source.model, [])
    made = export_data(run.config, source, tmp_path / "out", "parquet", NOTHING_STATED, lambda done, total: None)
    rows = read(tmp_path / "out")
    assert ("traces without an end token", "13") in facts_of(made, tmp_path, [])
    assert "exported without one" in caplog.text
    assert rows["completion_ids"][:] == [list(ids) for ids in tables(run)[0]["completion_ids"]]
    assert [*map(len, rows["completion_weights"][:])] == [*map(len, rows["completion_ids"][:])]


def test_pushed_only_when_asked_and_then_all_files_but_to_a_private_data_set(exports, upload_server):
    address = push_data_set(exports["parquet"], "me/my-traces")
    told = ExportFile.model_validate_json((exports["parquet"] / EXPORT_FILE).read_bytes())
    wanted = {"name": "my-traces", "organization": "me", "visibility": "private", "type": "dataset"}
    assert upload_server.made == wanted
    assert upload_server.files.keys() == {*told.files, "README.md", EXPORT_FILE}
    assert upload_server.files["README.md"] == (exports["parquet"] / "README.md").read_bytes()
    assert address.endswith("/commit/1")
    with pytest.raises(ConfigError, match=r"(?s)--push-to-hub not a name: .* The export is in .*: hf upload 'not a"):
        push_data_set(exports["parquet"], "not a name")


def test_rows_of_jsonl_stay_on_their_lines_for_every_reader(exports):
    for name in ("llama-factory", "axolotl"):
        text = (exports[name] / "data" / "train-00000.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in text.splitlines()] == [json.loads(line) for line in text.split("\n")[:-1]]


def test_examples_in_docstrings():
    assert doctest.testmod(hub).failed == 0

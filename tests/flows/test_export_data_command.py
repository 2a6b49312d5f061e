"""`mralign export-data`, and a run from its folder."""

import shutil

import pytest
import yaml
from datasets import load_dataset

from flows.commands.export_data import find_data
from mralign_core.config import AnnotateConfig, RunConfig
from mralign_core.config.annotate import ROLES
from mralign_core.errors import ArtifactError, ConfigError
from tests.exported_run import awkward_run
from tests.version_store import publish_version


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return awkward_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def config(run, tmp_path):
    """The run's config as a file, for the command line."""
    path = tmp_path / "exported.yaml"
    path.write_text(yaml.safe_dump(run.config.model_dump(mode="json", exclude_defaults=True)))
    return str(path)


def test_the_command_writes_what_load_dataset_reads_and_says_what_is_not_stated(mralign, config, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    code, out, err = mralign("export-data", str(tmp_path / "out"), "--config", config)
    assert code == 0, err
    told = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in out.splitlines()}
    assert (told["traces"], told["segments"], told["no licence stated"]) == ("13", "45", "my traces")
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows == 13
    code, _, err = mralign("export-data", str(tmp_path / "out"), "--config", config)
    assert code == 2 and "has files already, which are not overwritten" in err
    code, _, err = mralign("export-data", str(tmp_path / "ax"), "--config", config, "--format", "axolotl")
    assert code == 0 and (tmp_path / "ax" / "data" / "train-00000.jsonl").exists()
    code, out, err = mralign("run", "--config", config, "--from-traces", str(tmp_path / "ax"), "--dry-run")
    assert code == 2 and "exported with --format axolotl" in err
    code, out, err = mralign("run", "--config", config, "--from-traces", str(tmp_path / "out"), "--dry-run")
    assert code == 0, err
    assert "candidates" in out


def test_a_version_has_its_own_traces(run, tmp_path):
    names = ("candidates", "annotations", "weights")
    version = publish_version(run.store, tmp_path, "a", parents=[run.refs[name] for name in names], base_model="tiny")
    source = find_data(run.config, {}, version.name)
    assert source.run.artifacts.keys() == {*names, "model"}
    assert (source.run.base_model, source.run.run, source.missing) == ("tiny", f"version {version.name}", [])
    assert source.run.annotators["adjudicator"] == "cue/adjudicator"
    with pytest.raises(ConfigError, match="leave out --input"):
        find_data(run.config, {"weights": "3f9a"}, version.name)
    bare = publish_version(run.store, tmp_path, "b", parents=[run.refs["candidates"]])
    assert find_data(run.config, {}, bare.name).missing == [
        f"version {bare.name} was made without {name}" for name in names[1:]
    ]


def test_what_is_not_there_is_told(run, tmp_path):
    nothing = run.config.model_copy(update={"name": "never-run"})
    with pytest.raises(ArtifactError, match="no run of config 'never-run'"):
        find_data(nothing, {}, "")
    with pytest.raises(ArtifactError, match="0badc0de"):
        find_data(run.config, {"weights": "weights/0badc0de"}, "")
    with pytest.raises(ConfigError, match="export-data reads candidates, annotations and weights"):
        find_data(run.config, {"adapter": "3f9a"}, "")


def test_licences_of_the_config_are_those_of_its_sets(run, tmp_path):
    rows = '{"question": "Which town is it?", "answer": "Oslo"}\n'
    (tmp_path / "mine.jsonl").write_text(rows)
    sets = {"train": {"path": str(tmp_path / "mine.jsonl"), "licence": "cc0-1.0"}}
    config = RunConfig.model_validate({**run.config.model_dump(), "questions": sets})
    assert not find_data(config, {}, "").run.licences, "these traces are of no question set of the config"
    candidates = {"candidates": f"candidates/{sampled(run, tmp_path).key}"}
    assert find_data(config, candidates, "").run.licences == {"mine": "cc0-1.0"}
    (tmp_path / "mine.jsonl").unlink()
    assert find_data(config, candidates, "").run.licences == {"mine": "cc0-1.0"}
    without = RunConfig.model_validate({**run.config.model_dump(), "questions": {"train": sets["train"]["path"]}})
    assert config.questions.fingerprint() == without.questions.fingerprint(), "it changes no key"


def sampled(run, tmp_path):
    """The run's traces as if they had been sampled."""
    (tmp_path / "draws").mkdir()
    (tmp_path / "draws" / "draws.json").write_text("[]")
    draws = run.store.publish("generations", "draws", tmp_path / "draws", parents=[], fingerprint={})
    model = [one for one in run.store.manifest(run.refs["candidates"]).parents if one.stage == "model"]
    shutil.copytree(run.store.open_directory(run.refs["candidates"]), tmp_path / "sampled")
    return run.store.publish("candidates", "sampled", tmp_path / "sampled", parents=[draws, *model], fingerprint={})


@pytest.mark.parametrize(("escalate_below", "asked"), [(0.0, ["annotator_a"]), (7.0, [*ROLES])])
def test_a_card_names_those_annotators_that_may_have_been_asked(run, tmp_path, escalate_below, asked):
    section = {"annotator_a": "local/mine", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    decided = AnnotateConfig.model_validate({**section, "escalate_below": escalate_below}).fingerprint()
    key = f"distilled-{len(asked)}"
    shutil.copytree(run.store.open_directory(run.refs["annotations"]), tmp_path / key)
    run.store.publish("annotations", key, tmp_path / key, parents=[run.refs["candidates"]], fingerprint=decided)
    source = find_data(run.config, {"annotations": f"annotations/{key}"}, "")
    assert list(source.run.annotators) == asked

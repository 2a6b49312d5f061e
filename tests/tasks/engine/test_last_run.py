"""What is kept under a config's name: always the artifacts of one run, however many run at once."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.config import RunConfig, StorageConfig
from mralign_core.errors import ArtifactError
from mralign_core.storage import ArtifactRef, ArtifactStore, RunRecords
from tasks.engine import last_run as runs
from tasks.engine.last_run import LastRun, inputs_of, last_run, made_so_far, remember

STAGES = {
    "questions": [],
    "model": [],
    "candidates": ["questions", "model"],
    "annotations": ["candidates"],
    "transitions": ["candidates", "annotations"],
    "weights": ["candidates", "annotations", "transitions"],
    "adapter:kto": ["model", "candidates", "annotations"],
    "report": ["transitions", "weights", "adapter:kto"],
}


@pytest.fixture
def config(tmp_path):
    return RunConfig(name="pair", storage={"root": str(tmp_path / "store")}, questions={"train": "nq_open"})


@pytest.fixture
def as_run(monkeypatch):
    """Makes what follows part of a run; of a whole pipeline's where it is not by itself."""

    def as_run(name, *, by_itself=False):
        monkeypatch.setattr(runs, "root_flow_run_id", lambda: name)
        monkeypatch.setattr(runs, "_is_by_itself", lambda: by_itself)

    return as_run


def artifact(name, run):
    """An artifact that no store holds."""
    digest = hashlib.sha256(f"{name} {run}".encode()).hexdigest()
    return ArtifactRef(uri=f"file:///{run}/{name}", stage=name.partition(":")[0], key=digest[:20], sha256=digest)


def end_stage(records, run, stage, goes_on=False):
    record = records.of(run)
    built_on = {name: record.artifacts[name] for name in STAGES[stage]} if record else {}
    records.add(run, built_on, {stage: artifact(stage, run)}, goes_on=goes_on)


@settings(max_examples=60)
@given(order=st.lists(st.sampled_from(["a", "b", "c"]), max_size=3 * len(STAGES)))
def test_however_runs_interleave_the_last_ones_record_is_of_one_run(order, tmp_path_factory):
    store = ArtifactStore(StorageConfig(root=str(tmp_path_factory.mktemp("records"))))
    records, done = RunRecords(store, "pair"), dict.fromkeys("abc", 0)
    for run in order:
        if done[run] == len(STAGES):
            continue
        end_stage(records, run, list(STAGES)[done[run]])
        done[run] += 1
        assert records.last() == records.of(run)
        for name, number in done.items():
            of_run = records.of(name)
            wanted = {stage: artifact(stage, name) for stage in list(STAGES)[:number]}
            assert (of_run.artifacts if of_run else {}) == wanted
            assert set(of_run.made_by.values() if of_run else ()) <= {name}


def test_a_stage_by_itself_carries_over_what_the_last_run_made(config, as_run):
    records = RunRecords(ArtifactStore(config.storage), config.name)
    for stage in STAGES:
        end_stage(records, "full", stage)
    as_run("estimate-only", by_itself=True)
    inputs = {name: last_run(config, name) for name in ("candidates", "annotations")}
    remember(config, inputs, transitions=artifact("transitions", "estimate-only"))
    record, full = records.last(), records.of("full")
    assert record and full
    assert record.run == "estimate-only"
    assert set(record.artifacts) == set(STAGES)
    assert record.artifacts["transitions"] == artifact("transitions", "estimate-only")
    assert {name: run for name, run in record.made_by.items() if run != "full"} == {"transitions": "estimate-only"}
    assert full.artifacts["transitions"] == artifact("transitions", "full")


def test_a_stage_by_itself_carries_nothing_over_from_a_run_that_ended_one_meanwhile(config, as_run):
    records = RunRecords(ArtifactStore(config.storage), config.name)
    for run in ("first", "second"):
        for stage in STAGES:
            end_stage(records, run, stage)
    as_run("reward-only", by_itself=True)
    first = records.of("first")
    assert first
    given = {name: first.artifacts[name] for name in STAGES["weights"]}
    remember(config, given, weights=artifact("weights", "reward-only"))
    last = records.last()
    assert last and last.artifacts == {**given, "weights": artifact("weights", "reward-only")}


def test_a_pipeline_starts_from_nothing(config, as_run):
    remember(config, report=artifact("report", "old"))
    as_run("new")
    remember(config, questions=artifact("questions", "new"))
    last = RunRecords(ArtifactStore(config.storage), config.name).last()
    assert last and set(last.artifacts) == {"questions"}
    with pytest.raises(ArtifactError) as caught:
        last_run(config, "report")
    old = artifact("report", "old")
    assert f"the newest of an earlier run is report/{old.key}" in str(caught.value)
    assert "has not made 'report': run stage 'evaluate' first" in str(caught.value)


def test_a_run_finds_its_own_whatever_others_have_made_since(config, as_run):
    as_run("mine")
    remember(config, report=artifact("report", "mine"))
    as_run("other")
    remember(config, questions=artifact("questions", "other"))
    assert LastRun(config, "mine")("report") == artifact("report", "mine")


def test_of_a_kind_there_is_what_this_run_has_made_so_far(config, as_run):
    assert made_so_far(config, "adapter") == {}
    as_run("mine")
    remember(config, **{name: artifact(name, "mine") for name in ("adapter:kto", "adapter:sft", "weights")})
    as_run("other")
    remember(config, **{"adapter:kto": artifact("adapter:kto", "other")})
    as_run("mine")
    assert made_so_far(config, "adapter") == {name: artifact(name, "mine") for name in ("adapter:kto", "adapter:sft")}


def test_what_is_read_is_of_one_run_though_another_ends_a_stage_between_two_reads(config, as_run):
    records = RunRecords(ArtifactStore(config.storage), config.name)
    for stage in STAGES:
        end_stage(records, "first", stage)
    last = LastRun(config)
    last("candidates")
    for stage in STAGES:
        end_stage(records, "second", stage)
    assert last("annotations") == artifact("annotations", "first")


@pytest.mark.parametrize("text", ["{", '{"artifacts": 3}', '{"artifacts": {"report": {"uri": "x"}}}'])
def test_a_damaged_record_is_none(config, text, caplog):
    path = Path(config.storage.root, "records", "runs", "pair.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ArtifactError, match="no run of config 'pair'"):
        last_run(config, "report")
    assert "not using" in caplog.text


class TestInputs:
    @pytest.fixture
    def publish(self, config, tmp_path):
        def publish(stage, content, *parents):
            folder = tmp_path / f"made-{stage}-{content}"
            folder.mkdir()
            (folder / "x").write_text(content)
            return ArtifactStore(config.storage).publish(stage, content, folder, parents=parents, fingerprint={})

        return publish

    @pytest.fixture
    def made(self, config, publish, as_run):
        as_run("full")
        candidates = publish("candidates", "c")
        annotations = publish("annotations", "a", candidates)
        transitions = publish("transitions", "t", candidates, annotations)
        found = {"candidates": candidates, "annotations": annotations, "transitions": transitions}
        remember(config, **found)
        return found

    def test_what_is_not_given_is_the_last_runs(self, config, made, as_run):
        as_run("reward-only", by_itself=True)
        assert inputs_of(config, dict.fromkeys(made)) == made

    def test_what_is_given_is_taken_as_it_is(self, config, made, publish):
        other = {"candidates": publish("candidates", "other")}
        assert inputs_of(config, other) == other

    def test_a_run_in_parts_goes_on_from_its_own(self, config, made, publish, as_run):
        as_run("parts")
        mine = publish("candidates", "mine")
        remember(config, candidates=mine)
        as_run("full")
        remember(config, annotations=made["annotations"])
        as_run("parts")
        assert inputs_of(config, {"candidates": None}) == {"candidates": mine}

    def test_what_a_stage_goes_on_from_is_kept_before_its_children_begin(self, config, made, as_run):
        as_run("train-only", by_itself=True)
        inputs = inputs_of(config, {"candidates": None, "annotations": None})
        as_run("train-only")  # a child on a pool
        remember(config, inputs, **{"adapter:kto": artifact("adapter:kto", "train-only")})
        assert last_run(config, "transitions") == made["transitions"]

    def test_inputs_that_do_not_belong_together_are_refused(self, config, made, publish, as_run):
        as_run("generate-only", by_itself=True)
        remember(config, candidates=publish("candidates", "new"))
        as_run("estimate-only", by_itself=True)
        with pytest.raises(ArtifactError) as caught:
            inputs_of(config, {"candidates": None, "annotations": None})
        assert "'annotations' of config 'pair' was made from candidates c, not from new" in str(caught.value)
        assert "run stage 'annotate' first (mralign run --config pair --only annotate)" in str(caught.value)
        assert set(inputs_of(config, {"candidates": None})) == {"candidates"}

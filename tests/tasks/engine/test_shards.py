"""Looking items up among the shards that are there: what it asks of a store, and what it makes of damage."""

from datetime import UTC, datetime

import pytest

from mralign_core.config import RetentionConfig, RunConfig
from mralign_core.errors import ConfigError
from mralign_core.retention.collect import Collector
from mralign_core.retention.contents import read_claims
from mralign_core.storage import ArtifactStore, RunRecord
from tasks.annotate import annotate_shard, collect_annotations
from tasks.engine.graph import shard_kinds
from tasks.engine.one_task import run_one
from tasks.engine.run import Built
from tasks.engine.session import session
from tasks.engine.shards import lay_out
from tests.faulty_s3 import FaultyS3
from tests.published_candidates import candidate_row, publish_candidates

NUM_SHARDS = 12


def config_in(**storage):
    annotate = {role: {"model": "cue/a"} for role in ("annotator_a", "annotator_b", "adjudicator")}
    return RunConfig(
        storage=storage, questions={"train": "nq_open"}, annotate={**annotate, "shard_size": 1, "ask_again": "auto"}
    )


def build(making) -> Built:
    (making.directory / "made.json").write_text(str(making.work.rows))
    return Built()


def made_in_shards(config, folder, *, num_shards=NUM_SHARDS):
    """The candidates, a shard of labels made of each."""
    rows = [candidate_row(f"t{n}", [f"Let me check number {n}."]) for n in range(num_shards)]
    candidates = publish_candidates(config.storage, rows, folder / "candidates")

    with session():
        for row in range(num_shards):
            annotate_shard.work(config, candidates, [row]).produce(build=build)
    return candidates


def test_a_request_a_shard_and_few_more_are_asked_of_a_bucket(s3_server, s3_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of downloaded artifacts
    candidates = made_in_shards(config_in(root=s3_root, endpoint_url=s3_server.endpoint_url), tmp_path)
    with FaultyS3(s3_server.endpoint_url) as proxy, session():
        config = config_in(root=s3_root, endpoint_url=proxy.url)
        joined, store = collect_annotations.work(config, candidates), ArtifactStore(config.storage)
        layout = lay_out(joined, store)
        assert len(layout.shards) == NUM_SHARDS and not layout.missing
        proxy.num_requests.clear()
        lay_out(joined, store)
        # The manifest of the candidates, whose items are known; the notes' names; the notes; the shards' files.
        assert sum(proxy.num_requests.values()) == 1 + 1 + NUM_SHARDS + 1


@pytest.mark.parametrize("damage", ["manifest gone", "manifest cut", "data gone", "data cut", "note cut"])
def test_a_shard_that_is_not_whole_is_made_again(tmp_path, damage):
    config = config_in(root=str(tmp_path / "store"))
    candidates = made_in_shards(config, tmp_path, num_shards=3)
    shard = annotate_shard.work(config, candidates, [1])
    made = shard.find(ArtifactStore(config.storage))
    assert made is not None
    folder = tmp_path / "store" / made.path
    what, how = damage.split()
    note = tmp_path / "store" / "records" / f"{shard.notes}/{shard.key}.json"
    path = {"manifest": folder / "manifest.json", "data": folder / "data" / "made.json", "note": note}[what]
    path.write_bytes(path.read_bytes()[:-1]) if how == "cut" else path.unlink()
    layout = lay_out(collect_annotations.work(config, candidates), ArtifactStore(config.storage))
    assert layout.missing == [[1]] and sorted(layout.shards) == [0, 2]
    with session():
        shard.produce(build=build)
    layout = lay_out(collect_annotations.work(config, candidates), ArtifactStore(config.storage))
    assert layout.missing == [] and sorted(layout.shards) == [0, 1, 2]


def test_what_clears_a_store_up_keeps_the_shards_that_the_next_run_would_use(tmp_path):
    config = config_in(root=str(tmp_path / "store"))
    before = made_in_shards(config, tmp_path, num_shards=3)
    rows = [candidate_row(f"t{n}", [f"Let me check number {n}."]) for n in range(2)]
    now = publish_candidates(config.storage, rows, tmp_path / "now")
    store = ArtifactStore(config.storage)
    joined = collect_annotations.work(config, now)
    made = joined.produce(build=build).ref
    store.put_json("runs/weekly/r", RunRecord(run="r", artifacts={"annotations": made}).model_dump(mode="json"))
    other = annotate_shard.work(config.model_copy(update={"seed": 7}), before, [0])
    other.produce(build=build)
    kept = RetentionConfig(runs=1, days=0, grace_hours=0)
    collector = Collector(store, kept, shard_kinds(), clock=lambda: datetime(2100, 1, 1, tzinfo=UTC))
    gone = collector.carry_out(collector.plan()).removed
    # Last week's traces, and the shard of another seed; all shards of this week's line stay, whichever rows they have.
    assert sorted(each.kind for each in gone) == ["(notes)", "annotations-shard", "candidates"]
    assert len(store.keys("annotations-shard")) == 3
    assert store.keys("candidates") == [now.key]
    assert not lay_out(joined, store).missing


def test_the_claim_on_what_is_made_names_what_it_is_made_from(tmp_path):
    config = config_in(root=str(tmp_path / "store"))
    candidates = publish_candidates(config.storage, [candidate_row("t0", ["Let me check."])], tmp_path / "candidates")
    seen = []

    def build_and_look(making) -> Built:
        seen.extend(read_claims(making.store, 0.0))
        return build(making)

    with session():
        annotate_shard.work(config, candidates, [0]).produce(build=build_and_look)
    assert [(claim.name.rpartition("/")[0], claim.holder.reads) for claim in seen] == [
        ("annotations-shard", (candidates.path,))
    ]


def test_one_task_makes_the_shards_that_a_run_would(tmp_path):
    config = config_in(root=str(tmp_path / "store"))
    first = made_in_shards(config, tmp_path, num_shards=3)
    rows = [candidate_row(f"t{n}", [f"Let me check number {n}."]) for n in (9, 2, 1, 8, 7, 0)]
    grown = publish_candidates(config.storage, rows, tmp_path / "grown")
    settings = config.model_copy(update={"annotate": config.annotate.model_copy(update={"shard_size": 2})})
    named = {"candidates": grown.path.removeprefix("artifacts/")}
    store = ArtifactStore(config.storage)
    before = store.keys("annotations-shard")

    def make(shard):
        return run_one(settings, "annotations-shard", shard=shard, variant="", named=named)

    found = {row: annotate_shard.work(config, first, [row]).find(store) for row in range(3)}
    # In the order of their first rows: t9 and t8, then what is there of t2 and t1, then t7, and t0.
    made = [make(shard) for shard in range(5)]
    assert (made[1], made[2], made[4]) == (found[2], found[1], found[0])
    assert len(store.keys("annotations-shard")) == len(before) + 2
    assert [store.read_table(made[n], "annotations.parquet")["trace_id"].unique().tolist() for n in (0, 3)] == [
        ["t9", "t8"],
        ["t7"],
    ]
    assert [make(shard) for shard in range(5)] == made  # numbers stay as they are while shards are made
    with pytest.raises(ConfigError, match="--shard 5: there are 5 shards"):
        make(5)
    run = lay_out(collect_annotations.work(settings, grown), store)
    assert not run.missing and len(store.keys("annotations-shard")) == len(before) + 2

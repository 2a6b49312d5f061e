"""The traces after training, as a task of its own: what it is made from, and when."""

import pytest

from mralign_core.config import RunConfig
from mralign_core.reporting.training_health import read_trainings
from mralign_core.storage import ArtifactStore
from tasks.engine.graph import artifact_of
from tasks.train import policy_logps, reference_logps, train_adapter


def test_the_traces_that_were_trained_on_are_looked_at_under_the_adapter(published):
    config, inputs = published
    reference = reference_logps.run_here(config, *inputs)
    adapter = train_adapter.run_here(config, *inputs, reference, variant="kto")
    made = policy_logps.run_here(config, *inputs, reference_logps=reference, adapter=adapter, variant="kto")

    store = ArtifactStore(config.storage)
    before, after = store.read_table(reference, "reference.parquet"), store.read_table(made, "policy.parquet")
    assert after["trace_id"].tolist() == before["trace_id"].tolist() == [f"t{number}" for number in range(1, 7)]
    assert after["reference_logp"].tolist() == pytest.approx([sum(logps) for logps in before["logps"]])
    moved = (after["policy_logp"] - after["reference_logp"]).astype(float)
    assert moved.abs().min() > 0 and after["implicit_reward"].tolist() == pytest.approx(moved.tolist())  # weights are 1
    known = read_trainings(store, {"adapter:kto": adapter, "policy-logps:kto": made})["kto"].metrics
    assert "length_correlation" in known, "the doctor does not find it"
    other = train_adapter.run_here(config, *inputs, variant="sft")
    assert policy_logps.work(config, *inputs, reference_logps=reference, adapter=other, variant="sft").key != made.key


def test_it_is_made_where_it_is_asked_for_and_brings_the_reference_that_sft_lacks():
    def parts(name, **train):
        config = RunConfig.model_validate({"questions": {"train": "nq_open"}, "train": train})
        return [dict(part) for part in artifact_of(name).parts(config)]

    assert parts("policy-logps") == [] and parts("reference-logps", variants=["sft"]) == []
    asked = {"variants": ["sft", "kto"], "trace_logps": True}
    assert parts("policy-logps", **asked) == [{"variant": "sft"}, {"variant": "kto"}]
    assert parts("reference-logps", variants=["sft"], trace_logps=True) == [{}]

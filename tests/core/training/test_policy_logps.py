"""What a trained adapter made of each trace: sums against plain forward passes, and what goes to other processes."""

import doctest

import numpy as np
import pandas as pd
import pytest
import torch

from mralign_core.config import ModelConfig, TrainConfig
from mralign_core.errors import DataError, OutOfMemory
from mralign_core.method.objective import implicit_reward
from mralign_core.models.lora import attach_lora, save_adapter
from mralign_core.processes.job_folder import read_job, read_result, write_job, write_result
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.training import policy_logps
from mralign_core.training.examples import build_examples
from mralign_core.training.job import ReferenceJob
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.policy_logps import PolicyJob, compute_policy_logps
from mralign_core.training.reference import compute_reference, matched_rows, reference_table
from tests.core.training.test_logps import plain_logps
from tests.core.training.tiny import END, make_candidates, make_model, make_segment_weights, randomise_adapter

NUM_TRACES = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model in a folder, an adapter of random weights in another, and the model with it."""
    folder = tmp_path_factory.mktemp("trained")
    section = TrainConfig(lora_r=4, lora_alpha=8, max_length=64)
    model = attach_lora(make_model("qwen3"), section, seed=0)
    randomise_adapter(model)
    save_adapter(model, folder / "adapter", base_model="tiny")
    return folder / "adapter", model, section


@pytest.fixture
def job(trained, model_dir):
    adapter, _, section = trained
    candidates = make_candidates(NUM_TRACES)
    examples = build_examples(candidates, None, end_token_id=END, max_length=64).kept
    return PolicyJob(
        model_path=str(model_dir),
        model=ModelConfig(path=str(model_dir), dtype="float32", device="cpu"),
        train=section,
        candidates=candidates,
        adapter=adapter,
        segment_weights=make_segment_weights(candidates),
        reference=reference_table(CompletionLogps(make_model("qwen3")), examples, tokens_per_forward=10_000),
    )


def test_docstring_examples_hold():
    results = doctest.testmod(policy_logps, extraglobs={"np": np})
    assert results.attempted and not results.failed


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_each_trace_has_plain_log_probabilities_with_and_without_the_adapter(job, trained, tokens):
    smaller = job.model_copy(update={"train": job.train.model_copy(update={"tokens_per_forward": tokens})})
    table = compute_policy_logps(smaller)
    examples = build_examples(job.candidates, job.segment_weights, end_token_id=END, max_length=64).kept
    for row, example in zip(table.itertuples(), examples, strict=True):
        after = plain_logps(trained[1], matched_rows([example])).detach().double().numpy()
        before = plain_logps(make_model("qwen3"), matched_rows([example])).detach().double().numpy()
        assert np.allclose(row.logps, after, atol=1e-4) and row.num_tokens == len(example.completion_ids)
        assert row.policy_logp == pytest.approx(after.sum(), abs=1e-3)
        assert row.reference_logp == pytest.approx(before.sum(), abs=1e-3)
        assert row.kl == pytest.approx(float((np.exp(after - before) - 1 - (after - before)).sum()), rel=1e-2)
        weights = torch.tensor(example.weights)[None]
        reward = implicit_reward(torch.tensor(after)[None], torch.tensor(before)[None], weights, weights < np.inf)
        assert row.implicit_reward == pytest.approx(reward.item(), abs=1e-2)
        for segment, (start, end) in zip(row.segments, [(0, 2), (2, 5)], strict=True):
            assert segment["policy_logp"] == pytest.approx(after[start:end].sum(), abs=1e-3)
            assert segment["reference_logp"] == pytest.approx(before[start:end].sum(), abs=1e-3)
            assert segment["num_tokens"] == end - start
    assert table["policy_logp"].sub(table["reference_logp"]).abs().min() > 0.1  # the adapter does something


def test_the_estimate_of_the_kl_is_right_on_tokens_of_the_reference():
    """Over many draws of one token from the reference, its mean is Σ p log (p / q)."""
    reference, policy = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    tokens = np.random.default_rng(0).choice(3, 40_000, p=reference)
    trace = build_examples(make_candidates(1), None, end_token_id=END, max_length=64).kept[0]
    example = trace._replace(weights=[1.0] * len(tokens))
    row = policy_logps.policy_row(example, [], np.log(reference)[tokens], np.log(policy)[tokens])
    exact = float((reference * np.log(reference / policy)).sum())
    assert row["kl"] / len(tokens) == pytest.approx(exact, rel=0.02)


def test_a_reference_of_other_traces_is_refused(job):
    with pytest.raises(DataError, match="trace t0: table 'reference_logps' has no such row"):
        compute_policy_logps(job.model_copy(update={"reference": job.reference.iloc[1:]}))


def test_a_lack_of_memory_is_met_with_smaller_passes(job, monkeypatch, caplog):
    expected = compute_policy_logps(job)
    make_batch = CompletionLogps.batch

    def scarce(policy, rows):
        is_of_traces = any(completion[-1] == END for _, completion in rows)  # the others probe the model
        if is_of_traces and sum(len(prompt) + len(completion) for prompt, completion in rows) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_batch(policy, rows)

    monkeypatch.setattr(CompletionLogps, "batch", scarce)
    limit = 30
    found = compute_policy_logps(job)
    assert np.allclose(found["policy_logp"].astype(float), expected["policy_logp"].astype(float), atol=1e-3)
    assert "out of memory in a pass over the traces" in caplog.text
    limit = 3
    with pytest.raises(
        OutOfMemory, match=r"the longest row has \d+: lower train.tokens_per_forward.*with train.engine 'own'"
    ):
        compute_policy_logps(job)


def test_a_job_goes_to_other_processes_and_its_table_back(job, tmp_path):
    write_job(job, tmp_path)
    read = read_job(tmp_path)
    assert isinstance(read, PolicyJob) and read.adapter == job.adapter
    table = compute_policy_logps(read)
    write_result(read, tmp_path, table)
    pd.testing.assert_frame_equal(
        read_result(tmp_path).drop(columns="logps").infer_objects(), table.drop(columns="logps").infer_objects()
    )


def test_the_table_refuses_sums_that_are_not_of_its_tokens(job):
    table = compute_policy_logps(job)
    table.loc[2, "policy_logp"] = 0.0
    with pytest.raises(DataError, match=r"row 2 .*logps must be one a token"):
        POLICY_LOGPS.require(table)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_learnt_nothing_changed_nothing(job, tmp_path, dtype):
    save_adapter(attach_lora(make_model("qwen3"), job.train, seed=0), tmp_path, base_model="tiny")
    section = job.model.model_copy(update={"dtype": dtype})
    reference = compute_reference(ReferenceJob(**{**common(job), "model": section}))
    table = compute_policy_logps(job.model_copy(update={"model": section, "adapter": tmp_path, "reference": reference}))
    assert table["policy_logp"].tolist() == table["reference_logp"].tolist()
    assert table["implicit_reward"].tolist() == table["kl"].tolist() == [0.0] * NUM_TRACES


def common(job):
    return {name: getattr(job, name) for name in ReferenceJob.model_fields}

import numpy as np
import pytest
import torch

from mralign_core.errors import DataError, OutOfMemory
from mralign_core.models.lora import attach_lora
from mralign_core.training.examples import build_examples
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.reference import matched_rows, mismatched_rows, read_reference, reference_table
from tests.core.training.test_logps import plain_logps
from tests.core.training.tiny import END, make_candidates, make_model, randomise_adapter


@pytest.fixture
def examples():
    return build_examples(make_candidates(7, num_questions=4), None, end_token_id=END, max_length=64).kept


@pytest.mark.parametrize("budget", [1, 50, 10_000])
def test_the_table_holds_plain_log_probabilities_of_rows_and_pairs(examples, budget):
    model = make_model("qwen3")
    reference = read_reference(reference_table(CompletionLogps(model), examples, tokens_per_forward=budget), examples)
    expected = plain_logps(model, matched_rows(examples))
    torch.testing.assert_close(torch.cat(reference.logps), expected, rtol=1e-5, atol=1e-5)
    for pair, found in zip(mismatched_rows(examples, reference.partners), reference.kl_logps, strict=True):
        assert found == pytest.approx(plain_logps(model, [pair]).sum().item(), rel=1e-5)


def test_an_adapter_and_dropout_are_switched_off(examples, section):
    plain = reference_table(CompletionLogps(make_model("qwen3")), examples, tokens_per_forward=10_000)
    model = attach_lora(make_model("qwen3"), section.model_copy(update={"lora_dropout": 0.5}), seed=0)
    randomise_adapter(model)
    policy = CompletionLogps(model).train()
    assert reference_table(policy, examples, tokens_per_forward=10_000).equals(plain)
    assert policy.training


def test_progress_counts_rows_and_pairs(examples):
    seen = []
    reference_table(
        CompletionLogps(make_model("qwen3")),
        examples,
        tokens_per_forward=40,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (14, 14)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_table_of_other_rows_is_refused_with_the_trace(examples):
    table = reference_table(CompletionLogps(make_model("qwen3")), examples, tokens_per_forward=10_000)
    with pytest.raises(DataError, match="trace t3: table 'reference_logps' has no such row"):
        read_reference(table[table["trace_id"] != "t3"], examples)
    longer = [examples[0]._replace(completion_ids=[*examples[0].completion_ids, 1]), *examples[1:]]
    with pytest.raises(DataError, match=r"trace t0: .* has \d+ tokens, the completion \d+"):
        read_reference(table, longer)
    with pytest.raises(DataError, match="its KL pair"):
        read_reference(table, examples[:-1])


def test_a_lack_of_memory_is_met_with_smaller_passes_down_to_one_row(examples, caplog, monkeypatch):
    expected = reference_table(CompletionLogps(make_model("qwen3")), examples, tokens_per_forward=10_000)
    longest = max(len(each.prompt_ids) + len(each.completion_ids) for each in examples) + 4
    policy = CompletionLogps(make_model("qwen3"))
    make_batch = policy.batch

    def scarce(rows, limit):
        if sum(len(prompt) + len(completion) for prompt, completion in rows) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return make_batch(rows)

    monkeypatch.setattr(policy, "batch", lambda rows: scarce(rows, longest))
    found = reference_table(policy, examples, tokens_per_forward=10_000)
    for name in ("logps", "kl_logp"):
        one, two = (torch.tensor(np.hstack(table[name])) for table in (found, expected))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert "out of memory in a reference pass" in caplog.text
    monkeypatch.setattr(policy, "batch", lambda rows: scarce(rows, 3))
    with pytest.raises(
        OutOfMemory, match=r"the longest row has \d+: lower train.tokens_per_forward.*with train.engine 'own'"
    ):
        reference_table(policy, examples, tokens_per_forward=10_000)

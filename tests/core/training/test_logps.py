from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, masking_utils

from mralign_core.models.lora import attach_lora
from mralign_core.training.examples import build_examples
from mralign_core.training.logps import CHUNK_ELEMENTS, PROBE_LENGTHS, CompletionLogps, head_logps
from mralign_core.training.packing import make_batch
from mralign_core.training.reference import matched_rows
from tests.core.generation import random_models
from tests.core.generation.random_models import build_model
from tests.core.training.tiny import CONFIGS, END, make_candidates, make_model, randomise_adapter

CPU = torch.device("cpu")


def make_rows(num_rows=6):
    return matched_rows(build_examples(make_candidates(num_rows), None, end_token_id=END, max_length=64).kept)


def plain_logps(model, rows):
    """Each row alone, through the model's own logits and softmax."""
    found = []
    for prompt, completion in rows:
        ids = torch.tensor([prompt + completion])
        logps = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        found.append(logps[len(prompt) - 1 :])
    return torch.cat(found)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
@pytest.mark.parametrize("is_packed", [True, False])
def test_logps_of_rows_together_are_those_of_each_row_alone(architecture, is_packed):
    model, rows = make_model(architecture), make_rows()
    expected = plain_logps(model, rows)
    policy = CompletionLogps(model)
    assert policy.is_packed
    policy.is_packed = is_packed
    torch.testing.assert_close(policy(policy.batch(rows)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_packed_gradients_are_those_of_the_models_own_logits(architecture, section):
    gradients = []
    for is_packed in (True, False):
        model = attach_lora(make_model(architecture), section, seed=0)
        randomise_adapter(model)
        policy = CompletionLogps(model)
        policy.is_packed = is_packed
        batch = policy.batch(make_rows())
        (policy(batch) * torch.linspace(0.1, 2.0, len(batch.targets))).sum().backward()
        gradients.append({name: each.grad for name, each in policy.named_parameters() if each.requires_grad})
    for name, found in gradients[0].items():
        other = gradients[1][name]
        assert other is not None
        scale = other.abs().max()
        assert scale > 0
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4 * scale.item(), msg=name)


def test_head_gradient_is_that_of_finite_differences_whatever_the_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(11, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (7,), generator=generator)
    expected = (hidden @ weight.T + bias).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    for elements in (1, 3 * 11, 2**20):
        monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", elements)
        torch.testing.assert_close(head_logps(hidden, weight, bias, targets), expected)
        assert torch.autograd.gradcheck(lambda h: head_logps(h, weight, bias, targets), (hidden,))


def test_no_logits_of_the_batch_are_kept(monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 2 * 1000)
    hidden = torch.randn(64, 8, requires_grad=True)
    weight, targets = torch.randn(1000, 8), torch.zeros(64, dtype=torch.int64)
    kept = []

    def keep(each):
        kept.append(each.numel())
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        head_logps(hidden, weight, None, targets)
    assert max(kept) == hidden.numel()


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_hidden_states_that_predict_prompt_tokens_get_no_gradient(is_packed):
    model, rows = make_model("qwen3"), make_rows()
    policy = CompletionLogps(model)
    policy.is_packed = is_packed
    kept = {}

    def keep(module, inputs, output):
        kept["hidden"] = output.requires_grad_()
        output.retain_grad()

    model.model.norm.register_forward_hook(keep)
    batch = policy.batch(rows)
    policy(batch).sum().backward()
    touched = kept["hidden"].grad.flatten(0, 1).abs().sum(-1).nonzero()[:, 0]
    assert torch.equal(touched, batch.positions)
    assert len(touched) == sum(len(completion) for _, completion in rows)


@pytest.mark.parametrize("architecture", ["gemma3", "gpt_oss", "gemma2", "mamba"])
def test_models_whose_layers_or_heads_need_it_are_padded_and_right(architecture, caplog):
    model = build_model(architecture, 40).eval()
    rows = [([3, 4, 5], list(range(6, 20))), ([7], [8, 9, 10])]
    expected = plain_logps(model, rows)
    policy = CompletionLogps(model)
    assert not policy.is_packed
    assert "padded instead of packed" in caplog.text
    torch.testing.assert_close(policy(policy.batch(rows)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
def test_a_window_longer_than_the_rows_of_the_probe_is_seen_too(architecture, monkeypatch):
    monkeypatch.setattr(random_models, "SLIDING_WINDOW", 2 * max(map(sum, PROBE_LENGTHS)))
    model = build_model(architecture, 60).eval()
    rows = [([3, 4, 5], list(range(6, 56))), ([7], [8, 9, 10])]
    policy = CompletionLogps(model)
    torch.testing.assert_close(policy(policy.batch(rows)), plain_logps(model, rows), rtol=1e-4, atol=1e-4)
    assert not policy.is_packed


def test_layers_may_have_any_name_where_none_is_sharded():
    sizes: dict[str, Any] = {"vocab_size": 62, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48}
    heads = {"num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 64}
    model = OPTForCausalLM(OPTConfig(**sizes | heads))
    policy, rows = CompletionLogps(model).eval(), make_rows()
    torch.testing.assert_close(policy(policy.batch(rows)), plain_logps(model, rows), rtol=1e-4, atol=1e-4)


def test_no_mask_is_looked_for_in_a_packed_pass(monkeypatch):
    """transformers would find out by reading a value from the device, which the host then waits for."""
    policy = CompletionLogps(make_model("qwen3"))
    batch = policy.batch(make_rows())
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_: pytest.fail("looked for packed rows"))
    policy(batch)


def test_bfloat16_models_give_float32_logps_near_those_of_float32(section):
    rows = make_rows()
    expected = plain_logps(make_model("llama"), rows)
    model = attach_lora(make_model("llama").to(torch.bfloat16), section, seed=0)
    policy = CompletionLogps(model)
    found = policy(policy.batch(rows))
    assert policy.is_packed
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.5


def test_grid_puts_each_rows_values_in_its_place():
    batch = make_batch([([1, 2], [3, 4, 5]), ([1], [9])], CPU)
    values = batch.targets.float()
    assert batch.by_row(values).masked_fill(~batch.mask, -1).tolist() == [[3, 4, 5], [9, -1, -1]]

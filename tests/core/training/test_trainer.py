import json
import math
from typing import Any

import pytest
import torch
from transformers import OPTConfig

from mralign_core.errors import ConfigError, OutOfMemory
from mralign_core.models.lora import attach_lora, enable_recomputation
from mralign_core.training.checkpoints import TrainingState, restore, state_of
from mralign_core.training.examples import build_examples
from mralign_core.training.logps import CompletionLogps
from mralign_core.training.order import step_rows
from mralign_core.training.reference import Reference, mismatched_rows, read_reference, reference_table
from mralign_core.training.trainer import Trainer
from tests.core.training.test_logps import plain_logps
from tests.core.training.tiny import CONFIGS, END, make_candidates, make_model, make_segment_weights, randomise_adapter

ARCHITECTURES = sorted(CONFIGS)


def make_examples(num_rows=6, weighted=True, **options):
    candidates = make_candidates(num_rows, **options)
    segment_weights = make_segment_weights(candidates) if weighted else None
    return build_examples(candidates, segment_weights, end_token_id=END, max_length=64).kept


def make_trainer(section, examples, architecture="qwen3", *, supervised=False, rows=None, is_fresh=False):
    model = attach_lora(make_model(architecture), section, seed=0)
    if not is_fresh:
        randomise_adapter(model)
    policy = CompletionLogps(model)
    reference = read_reference(reference_table(policy, examples, tokens_per_forward=10_000), examples)
    return Trainer(
        policy,
        examples,
        rows=range(len(examples)) if rows is None else rows,
        reference=None if supervised else reference,
        section=section,
        learning_rate=1e-3,
        rows_per_epoch=len(examples),
        seed=0,
    )


def step_of(trainer):
    """The metrics of the next step, and its gradients before they are clipped to the norm."""
    clip = trainer.section.max_grad_norm
    trainer.train_step()
    trainer.read_metrics()
    row = trainer.metrics[-1]
    scale = max(1.0, row["grad_norm"] / clip)
    return row, {name: each.grad * scale for name, each in trainer.parameters.items()}


def assert_same(first, second, rtol=1e-4):
    assert first.keys() == second.keys()
    for name in first:
        scale = second[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=rtol * scale, msg=name)


def assert_same_row(first, second, rel=1e-4):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == pytest.approx(second[name], rel=rel, abs=1e-6, nan_ok=True), name


def with_options(section, **options):
    return section.model_copy(update=options)


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_is_the_same_however_it_is_split_into_forward_passes(section, architecture, supervised):
    examples = make_examples(8, num_questions=5)
    section = with_options(section, global_batch_size=8)
    whole = step_of(make_trainer(section, examples, architecture, supervised=supervised))
    for budget in (1, 40):
        split = with_options(section, tokens_per_forward=budget)
        row, gradients = step_of(make_trainer(split, examples, architecture, supervised=supervised))
        assert_same_row(row, whole[0])
        assert_same(gradients, whole[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputing_activations_changes_no_gradient(section, architecture):
    plain, recomputed = (make_trainer(section, make_examples(4), architecture) for _ in range(2))
    enable_recomputation(recomputed.policy.model)
    assert_same(step_of(recomputed)[1], step_of(plain)[1])


def test_dropout_touches_neither_the_kl_baseline_nor_another_steps_masks(section):
    rows = []
    for dropout in (0.0, 0.5):
        trainer = make_trainer(with_options(section, lora_dropout=dropout), make_examples(4))
        rows.append(step_of(trainer)[0])
    assert rows[0]["kl_raw"] == pytest.approx(rows[1]["kl_raw"], abs=1e-5) != 0  # maps with dropout are computed apart
    assert rows[0]["implicit_reward_positive"] != rows[1]["implicit_reward_positive"]
    torch.manual_seed(99)  # the masks follow from the seed and the step, not from what was drawn before
    again = step_of(make_trainer(with_options(section, lora_dropout=0.5), make_examples(4)))[0]
    assert again == rows[1]


def test_dropout_of_the_base_models_own_follows_from_seed_and_step_too(section, monkeypatch):
    sizes: dict[str, Any] = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=62, num_hidden_layers=2, max_position_embeddings=64, dropout=0.5, **sizes)
    monkeypatch.setitem(CONFIGS, "opt", config)
    first = step_of(make_trainer(section, make_examples(4), "opt"))[0]
    trainer = make_trainer(section, make_examples(4), "opt")
    torch.manual_seed(99)
    assert step_of(trainer)[0] == first


def test_a_weight_scales_exactly_its_segments_share_of_reward_and_gradient(section):
    """With z0 the same, a positive row's gradient is the sum over its tokens of weight × that token's gradient."""
    example, other = make_examples(2, weighted=False)
    rewards = []
    for first in (example, example._replace(weights=[1.0, 1.0, 2.0, 2.0, 2.0, *example.weights[5:]])):
        rewards.append(step_of(make_trainer(section, [first, other]))[0])
    trainer = make_trainer(section, [example, other])
    with torch.no_grad():
        policy = trainer.policy(trainer.policy.batch([(example.prompt_ids, example.completion_ids)]))
    logratios = policy - trainer.reference.logps[0]
    segment = logratios[2:5].sum().item()
    assert abs(segment) > 0.01
    assert rewards[1]["implicit_reward_positive"] - rewards[0]["implicit_reward_positive"] == pytest.approx(
        segment, rel=1e-4
    )
    assert rewards[0]["implicit_reward_positive"] == pytest.approx(logratios.sum().item(), rel=1e-4)
    assert rewards[1]["implicit_reward_negative"] == rewards[0]["implicit_reward_negative"]
    assert rewards[1]["kl_raw"] == rewards[0]["kl_raw"]


def test_the_gradient_is_the_papers_equation_taken_by_autograd_from_the_models_own_logits(section):
    examples = make_examples(5, num_questions=3)
    trainer = make_trainer(with_options(section, global_batch_size=5), examples)
    row, gradients = step_of(trainer)
    fresh = make_trainer(section, examples)
    model = fresh.policy.model.eval()
    rewards = []
    for example, reference in zip(examples, fresh.reference.logps, strict=True):
        logps = plain_logps(model, [(example.prompt_ids, example.completion_ids)])
        rewards.append(((logps - reference) * torch.tensor(example.weights)).sum())
    baseline = max(row["kl_raw"], 0.0)
    losses = [
        1.0 * (1 - torch.sigmoid(section.beta * (reward - baseline)))
        if example.is_positive
        else 1.5 * (1 - torch.sigmoid(section.beta * (baseline - reward)))
        for example, reward in zip(examples, rewards, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_same(gradients, {name: each.grad for name, each in fresh.parameters.items()})


@pytest.mark.parametrize("is_positive", [True, False])
def test_a_step_of_a_single_class_is_right_and_the_other_class_has_no_reward(section, is_positive):
    examples = [example._replace(is_positive=is_positive) for example in make_examples(4)]
    row, _ = step_of(make_trainer(section, examples))
    present, absent = ("positive", "negative") if is_positive else ("negative", "positive")
    assert math.isfinite(row[f"implicit_reward_{present}"])
    assert math.isnan(row[f"implicit_reward_{absent}"])


@pytest.mark.parametrize("budget", [1, 10_000])
def test_the_last_short_step_is_averaged_over_its_own_rows(section, budget):
    section = with_options(section, global_batch_size=6, num_epochs=1, tokens_per_forward=budget)
    examples = make_examples(7)
    trainer = make_trainer(section, examples)
    trainer.run()
    assert len(trainer.metrics) == 2
    with torch.no_grad():
        row = trainer.metrics[-1]
        assert math.isfinite(row["kl_raw"])
        rewards = [row["implicit_reward_positive"], row["implicit_reward_negative"]]
        [reward] = [value for value in rewards if not math.isnan(value)]
        sign, weight = (1, 1.0) if rewards[0] == reward else (-1, 1.5)
        expected = weight * (1 - 1 / (1 + math.exp(-section.beta * sign * (reward - row["kl_baseline"]))))
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_first_step_has_no_margin_so_the_loss_is_half_the_mean_weight(section):
    trainer = make_trainer(section, make_examples(4), is_fresh=True)
    first = step_of(trainer)[0]
    assert first["loss"] == pytest.approx((2 * 0.5 * 1.0 + 2 * 0.5 * 1.5) / 4)
    assert [
        first[name] for name in ("implicit_reward_positive", "implicit_reward_negative", "kl_raw")
    ] == pytest.approx([0] * 3, abs=1e-4)


def test_metrics_and_progress_have_a_row_for_each_step(section):
    seen = []
    trainer = make_trainer(section, make_examples(10))
    trainer.run(lambda step, total, row: seen.append((step, total, row)))
    assert [(step, total) for step, total, _ in seen] == [(step, 6) for step in range(1, 7)]
    assert [row for _, _, row in seen] == trainer.metrics
    rates = [row["learning_rate"] for row in trainer.metrics]
    assert rates == pytest.approx([0.0, 1e-3, 0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3])
    assert [row["epoch"] for row in trainer.metrics] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert all(row["kl_baseline"] == max(row["kl_raw"], 0) for row in trainer.metrics)


@pytest.mark.parametrize(("supervised", "field"), [(False, "train.learning_rate"), (True, "train.sft_learning_rate")])
def test_a_training_that_diverged_ends_with_the_step_and_the_setting_and_leaves_no_checkpoint(
    section, supervised, field
):
    trainer = make_trainer(section, make_examples(4), supervised=supervised)
    trainer.train_step()
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(math.nan)
    trainer.train_step()
    with pytest.raises(ConfigError, match=rf"diverged at step 2 of 2: .*nan.*lower {field}"):
        state_of(trainer)


def test_sft_loss_is_the_mean_over_the_steps_completion_tokens(section):
    examples = make_examples(4)
    trainer = make_trainer(section, examples, supervised=True)
    with torch.no_grad():
        logps = plain_logps(trainer.policy.model, [(each.prompt_ids, each.completion_ids) for each in examples])
    row, _ = step_of(trainer)
    assert row["loss"] == pytest.approx(-logps.mean().item(), rel=1e-5)
    assert math.isnan(row["kl_raw"]) and math.isnan(row["kl_baseline"]) and math.isnan(row["implicit_reward_positive"])


def test_the_baseline_is_estimated_anew_every_so_many_steps_and_averaged(section, monkeypatch):
    options = {"global_batch_size": 3, "num_epochs": 2}
    exact = make_trainer(with_options(section, **options), make_examples(9))
    held = make_trainer(with_options(section, kl_every=2, kl_decay=0.25, **options), make_examples(9))
    calls = []
    pairs = held._kl_pairs

    def counted(rows, reference):
        calls.append(held.step)
        return pairs(rows, reference)

    monkeypatch.setattr(held, "_kl_pairs", counted)
    first = [step_of(each)[0]["kl_raw"] for each in (exact, held)]
    assert first[0] == first[1]
    assert step_of(held)[0]["kl_raw"] == first[1]
    kept = state_of(held)
    policy, reference = held._kl_pairs([0, 1, 2], held.reference)
    held.run()
    assert calls[:2] == [0, 2] and calls[2:] == [2, 4]
    assert torch.equal(kept.tensors["kl_average"], torch.tensor(first[1]))
    assert policy.shape == reference.shape == (3,)


def test_the_moving_average_keeps_the_stated_share_of_the_old_value(section):
    averaged = make_trainer(with_options(section, kl_decay=0.75), make_examples(9))
    exact = make_trainer(section, make_examples(9))
    old = step_of(averaged)[0]["kl_raw"]
    restore(exact, state_of(averaged))
    new = step_of(exact)[0]["kl_raw"]
    assert abs(new - old) > 0.01
    assert step_of(averaged)[0]["kl_raw"] == pytest.approx(0.75 * old + 0.25 * new, rel=1e-4)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_row_that_comes_twice_in_a_step_counts_twice_in_the_baseline(section, budget):
    """As it does where the positives alone fill an epoch of all rows."""
    section = with_options(section, global_batch_size=5, tokens_per_forward=budget)
    examples = make_examples(8, num_questions=8)
    trainer = make_trainer(section, examples, rows=[0, 2, 4])
    rows = step_rows([0, 2, 4], step=0, rows_per_epoch=8, batch_size=5, seed=0)
    assert len(set(rows)) < len(rows)
    with torch.no_grad():
        pairs = mismatched_rows(examples, trainer.reference.partners)
        policy = [plain_logps(trainer.policy.model, [pairs[row]]).sum().item() for row in rows]
    expected = sum(policy) / 5 - sum(trainer.reference.kl_logps[row] for row in rows) / 5
    assert step_of(trainer)[0]["kl_raw"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"kl_every": 3, "kl_decay": 0.5}, {"lora_dropout": 0.3}])
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_going_on_from_a_state_gives_the_same_bits(section, options, stop_after):
    section = with_options(section, **options)
    examples = make_examples(10, num_questions=7)
    whole = make_trainer(section, examples)
    whole.run()
    first = make_trainer(section, examples)
    for _ in range(stop_after):
        first.train_step()
    stored = state_of(first)
    stored = TrainingState(stored.step, stored.tensors, json.loads(json.dumps(stored.values)))
    torch.manual_seed(4321)
    second = make_trainer(section, examples, is_fresh=True)
    restore(second, stored)
    second.run()
    assert json.dumps(second.metrics) == json.dumps(whole.metrics)
    assert all(torch.equal(second.parameters[name], each) for name, each in whole.parameters.items())


class _ScarceMemory:
    """Raises as a device does that holds so many tokens; with recomputation it holds four times as many."""

    def __init__(self, trainer, tokens):
        self.trainer, self.tokens = trainer, tokens
        self.inner = trainer.policy.batch
        trainer.policy.batch = self

    def __call__(self, rows):
        size = sum(len(prompt) + len(completion) for prompt, completion in rows)
        if size > self.tokens * (4 if self.trainer.pass_size.recompute else 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.inner(rows)


def test_a_lack_of_memory_is_met_with_more_and_smaller_passes_and_the_same_result(section, caplog):
    section = with_options(section, kl_every=1, kl_decay=0.5)
    examples = make_examples(8)
    plenty, scarce = (make_trainer(section, examples) for _ in range(2))
    _ScarceMemory(scarce, 40)
    for _ in range(3):
        expected, found = step_of(plenty), step_of(scarce)
        assert_same_row(found[0], expected[0], rel=1e-3)
        assert_same(found[1], expected[1], rtol=1e-3)
    assert scarce.pass_size.tokens <= 40
    assert "out of memory in a training step" in caplog.text


def test_recomputation_comes_last_and_then_the_error_names_the_row_and_the_setting(section):
    examples = make_examples(4)
    scarce = make_trainer(section, examples)
    _ScarceMemory(scarce, 8)
    step_of(scarce)
    assert scarce.pass_size.recompute
    hopeless = make_trainer(section, examples)
    _ScarceMemory(hopeless, 1)
    pairs = [len(prompt) + len(text) for prompt, text in mismatched_rows(examples, hopeless.reference.partners)]
    longest = f"longest {max(pairs)} \\(traces t{pairs.index(max(pairs))};.*train\\.max_length"
    with pytest.raises(OutOfMemory, match=longest) as caught:
        hopeless.train_step()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    stopping = make_trainer(with_options(section, on_out_of_memory="stop"), examples)
    _ScarceMemory(stopping, 8)
    with pytest.raises(OutOfMemory, match="on_out_of_memory"):
        stopping.train_step()


def test_only_the_chosen_rows_are_trained_on_while_partners_come_from_all(section):
    examples = make_examples(8, num_questions=8)
    positives = [row for row, example in enumerate(examples) if example.is_positive]
    trainer = make_trainer(section, examples, rows=positives)
    trainer.run()
    assert all(math.isnan(row["implicit_reward_negative"]) for row in trainer.metrics)
    assert trainer.num_steps == 4
    assert isinstance(trainer.reference, Reference)
    assert not set(trainer.reference.partners) <= set(positives)

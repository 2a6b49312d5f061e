import math

import pytest
import torch

from mralign_core.training.collator import IGNORED, TrainingItem, collate
from mralign_core.training.examples import build_examples
from mralign_core.training.lora import attach_lora
from mralign_core.training.trainer import (
    SupervisedTrainer,
    WeightedKTOTrainer,
    token_logps,
    training_arguments,
)
from tests.core.training.tiny import (
    CONFIGS,
    END,
    make_candidates,
    make_model,
    make_rewards,
    randomise_adapter,
)

ARCHITECTURES = sorted(CONFIGS)


def make_examples(num_rows=6, weighted=True, **options):
    candidates = make_candidates(num_rows, **options)
    rewards = make_rewards(candidates) if weighted else None
    return build_examples(candidates, rewards, end_token_id=END, max_length=64).kept


def make_trainer(kind, section, examples, tmp_path, architecture="qwen3", rows_per_epoch=None):
    model = attach_lora(make_model(architecture), section, seed=0)
    randomise_adapter(model)
    args = training_arguments(section, learning_rate=1e-3, seed=0, output_dir=str(tmp_path), on_cpu=True)
    return kind(
        model,
        args,
        section=section,
        examples=examples,
        rows_per_epoch=rows_per_epoch or len(examples),
        seed=0,
    )


def gradients(trainer):
    """Gradients of the first optimiser step, summed over its forward batches; the loss too."""
    section = trainer.section
    batches, _ = trainer.get_batch_samples(
        iter(trainer.get_train_dataloader()), section.gradient_accumulation, torch.device("cpu")
    )
    losses = [trainer.compute_loss(trainer.model, batch) for batch in batches]
    sum(losses).backward()
    return sum(losses).item(), {
        name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }


def assert_same(first, second, rtol=1e-4):
    assert first.keys() == second.keys()
    for name in first:
        scale = first[name].abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=rtol * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logps_of_a_padded_batch_are_those_of_each_row_alone_and_of_plain_softmax(architecture):
    model = make_model(architecture)
    items = [TrainingItem(example, None) for example in make_examples()]
    together = token_logps(model, collate(items, pad_token_id=3))
    for row, item in enumerate(items):
        ids = torch.tensor([item.example.prompt_ids + item.example.completion_ids])
        start = len(item.example.prompt_ids)
        plain = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[start - 1 :, 0]
        torch.testing.assert_close(together[row, start : ids.shape[1]], plain, rtol=1e-5, atol=1e-5)
        assert not together[row, :start].any() and not together[row, ids.shape[1] :].any()


@pytest.mark.parametrize("kind", [WeightedKTOTrainer, SupervisedTrainer])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_is_the_same_however_it_is_split_into_forward_batches(section, tmp_path, architecture, kind):
    examples = make_examples(8, num_questions=5)
    whole = section.model_copy(update={"batch_size": 8, "gradient_accumulation": 1})
    split = section.model_copy(update={"batch_size": 2, "gradient_accumulation": 4})
    loss_whole, gradients_whole = gradients(make_trainer(kind, whole, examples, tmp_path, architecture))
    loss_split, gradients_split = gradients(make_trainer(kind, split, examples, tmp_path, architecture))
    assert loss_whole == pytest.approx(loss_split, rel=1e-5)
    assert_same(gradients_whole, gradients_split)


def test_gradient_checkpointing_changes_no_gradient(section, tmp_path):
    examples = make_examples(4)
    plain = make_trainer(WeightedKTOTrainer, section, examples, tmp_path)
    recomputed = make_trainer(
        WeightedKTOTrainer, section.model_copy(update={"gradient_checkpointing": True}), examples, tmp_path
    )
    recomputed.model.gradient_checkpointing_enable({"use_reentrant": False})
    recomputed.model.train()
    assert_same(gradients(plain)[1], gradients(recomputed)[1])


def test_dropout_touches_neither_the_reference_nor_the_kl_baseline(section, tmp_path):
    found = []
    for dropout in (0.0, 0.5):
        with_dropout = section.model_copy(update={"lora_dropout": dropout})
        trainer = make_trainer(WeightedKTOTrainer, with_dropout, make_examples(4), tmp_path)
        trainer.model.train()
        loader = iter(trainer.get_train_dataloader())
        [batch], _ = trainer.get_batch_samples(loader, 1, torch.device("cpu"))
        found.append((trainer.step.kl_raw.item(), batch["reference_logps"]))
    assert found[0][0] == found[1][0] != 0
    assert torch.equal(found[0][1], found[1][1])


def test_a_weight_scales_exactly_its_segments_share_of_the_reward(section, tmp_path):
    example = make_examples(2, weighted=False)[0]
    doubled = example._replace(weights=[1.0, 1.0, 2.0, 2.0, 2.0, *example.weights[5:]])
    other = make_examples(2, weighted=False)[1]
    rewards = []
    for first in (example, doubled):
        trainer = make_trainer(WeightedKTOTrainer, section, [first, other], tmp_path)
        gradients(trainer)
        rewards.append(trainer.step_metrics())
    start = len(example.prompt_ids)
    batch = collate([TrainingItem(example, None)])
    with torch.no_grad():
        policy = token_logps(trainer.model.eval(), batch)
        with trainer.model.disable_adapter():
            logratios = (policy - token_logps(trainer.model, batch))[0]
    segment = logratios[start + 2 : start + 5].sum().item()
    assert abs(segment) > 0.01
    assert rewards[1]["reward_positive"] - rewards[0]["reward_positive"] == pytest.approx(segment, rel=1e-4)
    assert rewards[0]["reward_positive"] == pytest.approx(logratios.sum().item(), rel=1e-4)
    assert rewards[1]["reward_negative"] == rewards[0]["reward_negative"]
    assert rewards[1]["kl_raw"] == rewards[0]["kl_raw"]


def test_the_logits_of_prompt_tokens_get_no_gradient():
    model = make_model("qwen3")
    batch = collate([TrainingItem(example, None) for example in make_examples()])
    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept["logits"] = output

    model.lm_head.register_forward_hook(keep)
    token_logps(model, batch).sum().backward()
    gradient = kept["logits"].grad
    first = batch["input_ids"].shape[1] - gradient.shape[1]
    predicts_completion = torch.nn.functional.pad(batch["labels"] != IGNORED, (0, 1))[:, first + 1 :]
    assert gradient.shape[1] < batch["input_ids"].shape[1]
    assert torch.equal(gradient.abs().sum(-1) > 0, predicts_completion)


@pytest.mark.parametrize("gradient_accumulation", [1, 3])
def test_the_last_short_step_is_averaged_over_its_own_rows(section, tmp_path, gradient_accumulation):
    section = section.model_copy(
        update={"batch_size": 2, "gradient_accumulation": gradient_accumulation, "num_epochs": 1}
    )
    trainer = make_trainer(WeightedKTOTrainer, section, make_examples(7), tmp_path)
    trainer.train()
    assert len(trainer.metrics) == math.ceil(7 / (2 * gradient_accumulation))
    # One row is left for the last step; its partner is from an earlier step.
    assert trainer.step.num_rows == 1
    assert len(trainer.step.rewards) == 1
    assert math.isfinite(trainer.metrics[-1]["kl_raw"])


def test_first_step_has_no_margin_so_the_loss_is_half_the_mean_weight(section, tmp_path):
    trainer = make_trainer(WeightedKTOTrainer, section, make_examples(4), tmp_path)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    trainer.train()
    first = trainer.metrics[0]
    assert first["loss"] == pytest.approx((2 * 0.5 * 1.0 + 2 * 0.5 * 1.5) / 4)
    assert first["reward_positive"] == first["reward_negative"] == first["kl_raw"] == 0


def test_metrics_and_progress_have_a_row_for_each_step(section, tmp_path):
    seen = []
    trainer = make_trainer(WeightedKTOTrainer, section, make_examples(10), tmp_path)
    trainer.on_progress = lambda step, total, row: seen.append((step, total, row))
    trainer.train()
    assert [(step, total) for step, total, _ in seen] == [(step, 6) for step in range(1, 7)]
    assert [row for _, _, row in seen] == trainer.metrics
    rates = [row["learning_rate"] for row in trainer.metrics]
    assert rates == pytest.approx([0.0, 1e-3, 0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3])
    assert all(row["kl_baseline"] == max(row["kl_raw"], 0) for row in trainer.metrics)


def test_sft_loss_is_the_mean_over_the_steps_completion_tokens(section, tmp_path):
    examples = make_examples(4)
    trainer = make_trainer(SupervisedTrainer, section, examples, tmp_path)
    loss, _ = gradients(trainer)
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.completion_ids])
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = IGNORED
        with torch.no_grad():
            total += trainer.model(input_ids=ids, labels=labels).loss.item() * len(example.completion_ids)
        count += len(example.completion_ids)
    assert loss == pytest.approx(total / count, rel=1e-5)

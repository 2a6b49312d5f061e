"""With all weights 1 the trainer is TRL's KTO: the same pairs, loss, rewards, z0 and LoRA gradients."""

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import KTOConfig, KTOTrainer

from mralign_core.models.lora import target_modules
from mralign_core.training.examples import build_examples
from mralign_core.training.pairs import kl_partners
from mralign_core.training.reference import matched_rows, mismatched_rows
from tests.core.training.test_trainer import assert_same, make_trainer, step_of
from tests.core.training.tiny import (
    CONFIGS,
    END,
    make_candidates,
    make_model,
    make_tokenizer,
    randomise_adapter,
)

NUM_ROWS = 6


def make_trl_trainer(architecture, section, examples, tmp_path):
    """TRL as it comes, from text: it tokenises, adds the end token and builds the KL pairs itself."""
    model, tokenizer = make_model(architecture), make_tokenizer()
    dataset = Dataset.from_list(
        [
            {
                "prompt": tokenizer.decode(example.prompt_ids),
                "completion": " " + tokenizer.decode(example.completion_ids[:-1]),
                "label": example.is_positive,
            }
            for example in examples
        ]
    )
    args = KTOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(examples),
        beta=section.beta,
        desirable_weight=section.desirable_weight,
        undesirable_weight=section.undesirable_weight,
        max_length=None,
        gradient_checkpointing=False,
        router_aux_loss_coef=0.0,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        target_modules=target_modules(model, "all-linear"),
    )
    trainer = KTOTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=lora)
    randomise_adapter(trainer.model)
    return trainer


def in_the_order_of_the_pairs(examples):
    """Rows such that each prompt's partner is the row before, which is what TRL takes for it inside a batch."""
    partners = kl_partners(examples)
    order = [0]
    while partners[order[0]] != order[-1]:
        order.insert(0, partners[order[0]])
    assert len(order) == len(examples)
    return [examples[row] for row in order]


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_weight_one_is_trl_kto(section, tmp_path, architecture):
    section = section.model_copy(update={"global_batch_size": NUM_ROWS})
    examples = build_examples(make_candidates(NUM_ROWS), None, end_token_id=END, max_length=64).kept
    ours = make_trainer(section, examples, architecture)
    theirs = make_trl_trainer(architecture, section, in_the_order_of_the_pairs(examples), tmp_path)
    their_batch = next(iter(theirs.get_train_dataloader()))
    assert real_rows(their_batch, "") == sorted([*row[0], *row[1]] for row in matched_rows(examples))
    assert real_rows(their_batch, "KL_") == sorted(
        [*row[0], *row[1]] for row in mismatched_rows(examples, ours.reference.partners)
    )

    metrics, our_gradients = step_of(ours)
    their_kl = theirs._compute_kl_logps(theirs.model, their_batch)
    their_kl = (their_kl - theirs.compute_ref_log_probs(theirs.model, their_batch)[1]).mean().item()
    their_loss = theirs.compute_loss(theirs.model, their_batch)
    their_loss.backward()
    their_metrics = {name: values[-1] for name, values in theirs._metrics["train"].items()}
    assert metrics["loss"] == pytest.approx(their_loss.item(), rel=1e-5)
    assert section.beta * metrics["implicit_reward_positive"] == pytest.approx(
        their_metrics["rewards/chosen"], rel=1e-4
    )
    assert section.beta * metrics["implicit_reward_negative"] == pytest.approx(
        their_metrics["rewards/rejected"], rel=1e-4
    )
    assert metrics["kl_raw"] == pytest.approx(their_kl, rel=1e-4)
    assert metrics["kl_baseline"] == pytest.approx(their_metrics["kl"], rel=1e-4)
    their_gradients = {
        f"model.{name}": parameter.grad
        for name, parameter in theirs.model.named_parameters()
        if parameter.requires_grad
    }
    assert_same(our_gradients, their_gradients)


def real_rows(batch, prefix):
    pairs = zip(batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"], strict=True)
    return sorted(ids[mask.bool()].tolist() for ids, mask in pairs)

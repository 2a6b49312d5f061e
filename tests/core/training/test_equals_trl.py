"""With all weights 1 the trainer is TRL's KTO: the same pairs, loss, rewards, z0 and LoRA gradients."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import KTOConfig, KTOTrainer

from mralign_core.training.examples import build_examples
from mralign_core.training.lora import target_modules
from mralign_core.training.trainer import WeightedKTOTrainer
from tests.core.training.test_trainer import assert_same, gradients, make_trainer
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


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_weight_one_is_trl_kto(section, tmp_path, architecture):
    section = section.model_copy(update={"batch_size": NUM_ROWS})
    candidates = make_candidates(NUM_ROWS)
    examples = build_examples(candidates, None, end_token_id=END, max_length=64).kept
    ours = make_trainer(WeightedKTOTrainer, section, examples, tmp_path, architecture)
    order = ours._get_train_sampler().order(0)
    theirs = make_trl_trainer(architecture, section, [examples[row] for row in order], tmp_path)

    our_batch = next(iter(ours.get_train_dataloader()))
    their_batch = next(iter(theirs.get_train_dataloader()))
    for name in ("input_ids", "kl_input_ids"):
        ours_masked = our_batch[name] * our_batch[name.replace("input_ids", "attention_mask")]
        their_name = name.replace("kl_", "KL_")
        theirs_masked = their_batch[their_name] * their_batch[their_name.replace("input_ids", "attention_mask")]
        assert torch.equal(ours_masked, theirs_masked), name

    loss, our_gradients = gradients(ours)
    their_kl = theirs._compute_kl_logps(theirs.model, their_batch)
    their_kl = (their_kl - theirs.compute_ref_log_probs(theirs.model, their_batch)[1]).mean().item()
    their_loss = theirs.compute_loss(theirs.model, their_batch)
    their_loss.backward()
    their_metrics = {name: values[-1] for name, values in theirs._metrics["train"].items()}
    metrics = ours.step_metrics()
    assert loss == pytest.approx(their_loss.item(), rel=1e-5)
    assert section.beta * metrics["reward_positive"] == pytest.approx(their_metrics["rewards/chosen"], rel=1e-4)
    assert section.beta * metrics["reward_negative"] == pytest.approx(their_metrics["rewards/rejected"], rel=1e-4)
    assert metrics["kl_raw"] == pytest.approx(their_kl, rel=1e-4)
    assert metrics["kl_baseline"] == pytest.approx(their_metrics["kl"], rel=1e-4)
    assert_same(
        our_gradients,
        {name: parameter.grad for name, parameter in theirs.model.named_parameters() if parameter.requires_grad},
    )

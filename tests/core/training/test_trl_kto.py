"""MR-ALIGN by TRL's KTOTrainer is our own loop's: loss, rewards, z0 and every LoRA gradient; and TRL's options work."""

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import KTOConfig

from mralign_core.errors import DataError
from mralign_core.models.lora import target_modules
from mralign_core.training import trl_kto
from mralign_core.training.trl_kto import MRAlignKTOTrainer, WeightedCollator, _weigh_row, rows_for_trl
from tests.core.training.test_logps import plain_logps
from tests.core.training.test_trainer import make_examples, make_trainer, step_of
from tests.core.training.tiny import CONFIGS, make_model, make_tokenizer, randomise_adapter

NUM_ROWS = 6
EXACT = 1e-5


def make_trl(section, dataset, tmp_path, architecture="qwen3", callbacks=None, tokenizer=None, **options):
    model = make_model(architecture)
    args = KTOConfig(
        **{
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": len(dataset),
            "beta": section.beta,
            "desirable_weight": section.desirable_weight,
            "undesirable_weight": section.undesirable_weight,
            "max_length": None,
            "gradient_checkpointing": False,
            "router_aux_loss_coef": 0.0,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **options,
        }
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        target_modules=target_modules(model, "all-linear"),
    )
    trainer = MRAlignKTOTrainer(
        model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer or make_tokenizer(),
        peft_config=adapter,
        callbacks=callbacks,
    )
    randomise_adapter(trainer.model)
    return trainer


def trl_step(trainer):
    """Loss, TRL's metrics, z0 before the clamp, and gradients of the whole data set as one batch."""
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        pairs = trainer._compute_kl_logps(trainer.model, batch)
        kl_raw = (pairs - trainer.compute_ref_log_probs(trainer.model, batch)[1]).mean().item()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    gradients = {f"model.{name}": each.grad for name, each in trainer.model.named_parameters() if each.requires_grad}
    return loss.item(), metrics, kl_raw, gradients


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_both_engines_agree_in_loss_rewards_and_every_gradient(section, tmp_path, architecture):
    section = section.model_copy(update={"global_batch_size": NUM_ROWS})
    examples = make_examples(NUM_ROWS, num_questions=4)
    ours, our_gradients = step_of(make_trainer(section, examples, architecture))
    trainer = make_trl(section, rows_for_trl(examples), tmp_path, architecture)
    loss, metrics, kl_raw, gradients = trl_step(trainer)
    assert loss == pytest.approx(ours["loss"], rel=EXACT)
    for name, reward in (("chosen", "implicit_reward_positive"), ("rejected", "implicit_reward_negative")):
        # In nats: a reward near 0 is a difference of sums of a hundred, whose rounding in float32 it has.
        assert metrics[f"rewards/{name}"] / section.beta == pytest.approx(ours[reward], rel=EXACT, abs=EXACT)
    assert kl_raw == pytest.approx(ours["kl_raw"], rel=EXACT)
    assert gradients.keys() == our_gradients.keys()
    for name, gradient in gradients.items():
        difference = (gradient - our_gradients[name]).abs().max() / our_gradients[name].abs().max()
        assert difference <= EXACT, name


def test_every_way_to_the_reference_and_to_the_weights_gives_the_same_step(section, tmp_path):
    """Reference in the step, before it by TRL, or from our table; ids and weights, or text and segments."""
    examples = make_examples(NUM_ROWS, num_questions=4)
    rows = rows_for_trl(examples)
    expected = trl_step(make_trl(section, rows, tmp_path))
    before = {"precompute_ref_log_probs": True}
    for dataset, options in (
        (rows, before),
        (rows_for_trl(examples, make_trainer(section, examples).reference), before),
        (rows, {"gradient_checkpointing": True}),
    ):
        found = trl_step(make_trl(section, dataset, tmp_path, **options))
        assert found[0] == pytest.approx(expected[0], rel=EXACT)
        assert found[1]["rewards/margins"] == pytest.approx(expected[1]["rewards/margins"], rel=1e-4)
        for name, gradient in found[3].items():
            torch.testing.assert_close(gradient, expected[3][name], rtol=1e-4, atol=EXACT, msg=name)


def test_what_trl_has_computed_of_the_reference_is_not_taken_for_rows_that_are_cut_elsewhere(section, tmp_path):
    """In rows that have a file, beside which TRL keeps it."""
    rows_for_trl(make_examples(2)).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(str(tmp_path / "rows"))
    options = {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True}
    found = [
        make_trl(section, rows, tmp_path, max_length=length, **options).train_dataset["ref_logps"][:]
        for length in (None, 7, None)
    ]
    assert found[0] == found[2] and all(whole < cut for whole, cut in zip(*found[:2], strict=True))


def test_nor_for_other_kernels(section, tmp_path, monkeypatch):
    rows_for_trl(make_examples(2)).save_to_disk(tmp_path / "rows")
    asked = []
    compute = MRAlignKTOTrainer.compute_ref_log_probs

    def counted(*arguments):
        asked.append(arguments)
        return compute(*arguments)

    monkeypatch.setattr(MRAlignKTOTrainer, "compute_ref_log_probs", counted)
    monkeypatch.setattr(trl_kto, "apply_liger_kernel", lambda *_: None)
    monkeypatch.setattr(transformers.trainer, "apply_liger_kernel", lambda *_: None)
    passes = []
    for is_liger in (False, True, True):
        rows = Dataset.load_from_disk(str(tmp_path / "rows"))
        options = {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True, "use_liger_kernel": is_liger}
        make_trl(section, rows, tmp_path, **options)
        passes.append(len(asked))
    assert 0 < passes[0] < passes[1] == passes[2]


def test_the_kl_pairs_reference_is_wanted_where_the_loss_has_z0(section, tmp_path):
    rows = rows_for_trl(make_examples(2)).add_column("ref_logps", [-1.0, -2.0])
    options = {"precompute_ref_log_probs": True, "loss_type": "apo_zero_unpaired"}
    assert make_trl(section, rows, tmp_path, **options).train_dataset["ref_logps"][:] == [-1.0, -2.0]
    with pytest.raises(DataError, match="has 'ref_logps' of ref_logps and ref_KL_logps: give all"):
        make_trl(section, rows, tmp_path, precompute_ref_log_probs=True)


def text_rows(examples):
    """The same rows as text: segments of the first two words and of the three behind them."""
    rows = []
    for example in examples:
        words = [f"w{token}" for token in example.completion_ids[:-1]]
        borders = [len(" ".join(words[:count])) for count in (2, 5)]
        weights = example.weights[0], example.weights[2]
        rows.append(
            {
                "prompt": " ".join(f"w{token}" for token in example.prompt_ids),
                "completion": " " + " ".join(words),
                "label": example.is_positive,
                "segments": [
                    {"start": 1, "end": 1 + borders[0], "weight": weights[0]},
                    {"start": 2 + borders[0], "end": 1 + borders[1], "weight": weights[1]},
                ],
            }
        )
    return rows


def test_segments_of_text_become_the_weights_of_its_tokens(section, tmp_path):
    examples = make_examples(4)
    trainer = make_trl(section, Dataset.from_list(text_rows(examples)), tmp_path)
    for row, example in zip(trainer.train_dataset, examples, strict=True):
        assert (row["prompt_ids"], row["completion_ids"]) == (example.prompt_ids, example.completion_ids)
        assert row["completion_weights"] == pytest.approx(example.weights)


def test_text_that_no_segment_holds_has_weight_1_and_blanks_go_with_what_is_before_them():
    pieces = ["<think>", "w1", "\n", "w2", "w3", "\n", "w4", "w5", "</think>", "w6"]
    text = "".join(pieces)
    tokenizer = Tokenizer(WordLevel({piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, "w1"))
    tokenizer.pre_tokenizer = Split(Regex(r"</?think>|w\d|\n"), "isolated")
    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = fast(text)["input_ids"]

    def weights(*segments):
        spans = [
            {"start": text.index(first), "end": text.index(last) + 2, "weight": weight}
            for first, last, weight in segments
        ]
        return _weigh_row({"completion_ids": ids, "completion": text, "segments": spans}, 0, fast)["completion_weights"]

    assert weights(("w1", "w1", 2.0), ("w2", "w3", 3.0), ("w4", "w5", 4.0)) == [2, 2, 2, 3, 3, 3, 4, 4, 1, 1]
    assert weights(("w2", "w2", 3.0), ("w4", "w4", 4.0)) == [1, 1, 1, 3, 1, 1, 4, 1, 1, 1]


def test_segments_of_a_message_are_found_behind_what_the_template_adds(section, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}w{{ loop.index }} {{ message.content }} </s>{% endfor %}"
        "{% if add_generation_prompt %}w2 {% endif %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": "w7 w8"}],
            "completion": [{"role": "assistant", "content": "w5 w6 w9"}],
            "label": bool(number),
            "segments": [{"start": 0, "end": 5, "weight": 2.0}],
        }
        for number in range(2)
    ]
    row = make_trl(section, Dataset.from_list(rows), tmp_path, tokenizer=tokenizer).train_dataset[0]
    assert (row["completion_ids"], row["completion_weights"]) == ([5, 6, 9, 60], [2.0, 2.0, 1.0, 1.0])
    rows[1]["completion"] = [{"role": "assistant", "content": "w5  w6"}]
    with pytest.raises(DataError, match="row 1: its tokens decode to 'w5 w6 </s>'"):
        make_trl(section, Dataset.from_list(rows), tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}])
def test_in_bfloat16_all_logits_are_float32_as_those_of_our_reference(section, tmp_path, options):
    """Rounded ones are another model: an untrained adapter would have implicit rewards against our reference."""
    args = KTOConfig(str(tmp_path), per_device_train_batch_size=4, max_length=None, use_cpu=True, bf16=True, **options)
    model = make_model("llama").to(torch.bfloat16)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = MRAlignKTOTrainer(
        model,
        args=args,
        train_dataset=rows_for_trl(make_examples(4)),
        processing_class=make_tokenizer(),
        peft_config=lora,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad(), trainer.accelerator.autocast():
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        found = trainer.model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs
    logits = hidden.float() @ model.lm_head.weight.float().T
    expected = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["rewards/margins"] == pytest.approx([0], abs=1e-5)  # TRL's own reference likewise


def test_a_training_runs_to_its_end_with_callbacks_and_a_held_out_set(section, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(logs)

    rows = rows_for_trl(make_examples(8, num_questions=5))
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "logging_steps": 1, "learning_rate": 1e-2}
    trainer = make_trl(section, rows, tmp_path, callbacks=[Watch()], save_strategy="no", **options)
    trainer.train()
    losses = [logs["loss"] for logs in seen if "loss" in logs]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert "eval_rewards/margins" in trainer.evaluate(rows)
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row.pop("completion_weights"),
            r"no column 'completion_weights'.*take trl.KTOTrainer",
        ),
        (lambda row: row["completion_weights"].pop(), "row 0: 7 completion_weights for 8 completion_ids"),
        (lambda row: row["completion_weights"].__setitem__(0, float("nan")), "each needs a finite one"),
    ],
)
def test_rows_without_their_weights_are_refused(section, tmp_path, change, message):
    rows = rows_for_trl(make_examples(2)).to_list()
    for row in rows:
        row["completion_ids"], row["completion_weights"] = row["completion_ids"][:8], row["completion_weights"][:8]
        change(row)
    with pytest.raises(DataError, match=message):
        make_trl(section, Dataset.from_list(rows), tmp_path)


def test_segments_beyond_the_text_or_out_of_order_name_their_row(section, tmp_path):
    rows = text_rows(make_examples(2))
    rows[1]["segments"][1]["end"] = 999
    with pytest.raises(DataError, match="row 1: its last segment ends at character 999"):
        make_trl(section, Dataset.from_list(rows), tmp_path)
    rows[1]["segments"] = [{"start": 4, "end": 2, "weight": 1.0}]
    with pytest.raises(DataError, match=r"row 1: segments .* must be in order"):
        make_trl(section, Dataset.from_list(rows), tmp_path)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "row 1: it has no 'segments'"),
        ([{"start": 1, "end": 3, "weight": None}], "row 1: segment 0 is .*it needs start"),
        ([{"start": -1, "end": 3, "weight": 1.0}], "row 1: segment 0 is .*from 0 on"),
    ],
)
def test_segments_that_are_missing_or_lack_a_value_name_their_row(section, tmp_path, segments, message):
    rows = text_rows(make_examples(2))
    rows[1]["segments"] = segments
    with pytest.raises(DataError, match=message):
        make_trl(section, Dataset.from_list(rows), tmp_path)
    rows[1]["segments"] = []
    assert set(make_trl(section, Dataset.from_list(rows), tmp_path).train_dataset[1]["completion_weights"]) == {1.0}


@pytest.mark.parametrize("weights", [[0.5], [0.5, float("nan")], None])
def test_a_stream_whose_weights_are_not_of_its_tokens_is_refused_when_a_batch_is_made(weights):
    rows = [{"prompt_ids": [1], "completion_ids": [2, 3], "completion_weights": [1.0, 2.0], "label": True}]
    rows.append({**rows[0], "completion_weights": weights})
    with pytest.raises(DataError, match=r"row 1 of a batch: . completion_weights for 2 completion_ids"):
        WeightedCollator(pad_token_id=0)(rows)


def test_a_collator_that_drops_the_weights_is_refused_and_rows_that_are_cut_are_told(section, tmp_path, caplog):
    rows = rows_for_trl(make_examples(2))
    trainer = make_trl(section, rows, tmp_path, max_length=12)
    assert "exceed max_length 12: TRL cuts off their end" in caplog.text
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["completion_weights"].shape == batch["input_ids"].shape == (2, 12)
    del batch["completion_weights"]
    for compute in (trainer.compute_loss, trainer.compute_ref_log_probs):
        with pytest.raises(DataError, match="derive yours from WeightedCollator"):
            compute(trainer.model, batch)


def test_without_an_adapter_the_reference_is_a_model_of_its_own_and_weighted_too(section, tmp_path, model_dir):
    examples = make_examples(2)
    args = KTOConfig(str(tmp_path), per_device_train_batch_size=2, max_length=None, use_cpu=True, bf16=False)
    trainer = MRAlignKTOTrainer(str(model_dir), make_model("qwen3", seed=5), args, train_dataset=rows_for_trl(examples))
    _, metrics, _, _ = trl_step(trainer)
    policy, reference = make_model("qwen3"), make_model("qwen3", seed=5)
    for example, name in zip(examples, ("chosen", "rejected"), strict=True):
        logratios = plain_logps(policy, [example.row]) - plain_logps(reference, [example.row])
        reward = args.beta * (logratios * torch.tensor(example.weights)).sum().item()
        assert metrics[f"rewards/{name}"] == pytest.approx(reward, rel=1e-4)

"""The training doctor speaks on planted faults and is silent on healthy trainings, made up and real."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
from torch.utils.data import DataLoader
from trl import KTOConfig

from mralign_core.config import TrainConfig
from mralign_core.training.doctor import IMPLICIT_REWARDS, TrainingRecord, find_faults
from mralign_core.training.fit import train_adapter
from mralign_core.training.trl_doctor import TrainingDoctor, row_of_metrics
from mralign_core.training.trl_kto import MRAlignKTOTrainer, length_correlation, rows_for_trl
from tests.core.training.test_trainer import make_examples
from tests.core.training.test_trl_engine import make_job

HEALTHY_SEEDS = range(16)


def made_up(seed, *, steps=None, positive=None, negative=None, kl=None, loss=None, **known):
    """A training as healthy ones go, from a seed; ``positive``, ``negative`` and ``kl`` are where the curves end."""
    generator = np.random.default_rng(seed)
    steps = steps or int(generator.integers(12, 400))
    positive = generator.uniform(0.3, 20) if positive is None else positive
    negative = -generator.uniform(1.0, 45) if negative is None else negative
    kl = generator.uniform(-2, 6) if kl is None else kl
    rise = np.linspace(0, 1, steps) ** generator.uniform(0.5, 2)
    noise = generator.normal(0, 0.1, (3, steps)) * min(1.0, abs(positive) + abs(negative)) * np.sqrt(rise)
    raw = kl * rise + noise[2] * bool(kl)
    losses = np.linspace(0.65, 0.65 - generator.uniform(0.02, 0.4), steps) if loss is None else loss(rise)
    metrics = pd.DataFrame(
        {
            "loss": losses + generator.normal(0, 0.003, steps),
            "grad_norm": 1.0,
            "implicit_reward_positive": positive * rise + noise[0],
            "implicit_reward_negative": negative * rise + noise[1],
            "kl_raw": raw,
            "kl_baseline": np.maximum(raw, 0),
            "length_correlation": generator.uniform(-0.5, 0.5, steps),
        }
    )
    weights = np.exp(generator.normal(0, 0.5, 600)).clip(1 / np.e, np.e)
    lengths = generator.normal(600, 120, (2, 80)).round()
    before = generator.normal(500, 150, 60).clip(10)
    facts = {
        "undesirable_weight": 1.5,
        "num_positive": int(generator.integers(60, 200)),
        "num_negative": int(generator.integers(60, 130)),
        "weights": weights,
        "clipped": (weights <= 1 / np.e) | (weights >= np.e),
        "positive_lengths": lengths[0],
        "negative_lengths": lengths[1],
        "answers_before": before,
        "answers_after": before * generator.uniform(0.8, 1.25),
        **known,
    }
    return TrainingRecord("mr_align", metrics, **facts)


@pytest.mark.parametrize("seed", HEALTHY_SEEDS)
def test_it_is_silent_on_healthy_trainings(seed):
    assert find_faults(made_up(seed)) == []


TOKENS = np.arange(400, 500)
FAULTS: dict[str, dict[str, Any]] = {
    "loss flat": {"positive": 0.02, "negative": -0.02, "kl": 1e-3, "loss": lambda rise: 0.625 + 0 * rise},
    "loss rises": {"positive": -6.0, "negative": 3.0, "loss": lambda rise: 0.6 + 0.2 * rise},
    "KL stuck at 0": {"kl": 0.0},
    "KL stuck at 0 ": {"kl": -12.0, "positive": -3.0, "negative": -9.0},
    "KL stuck at 0  ": {"kl": -12.0, "positive": 0.5, "negative": -5.0},
    "KL stuck at 0   ": {"kl": -25.0, "positive": 5.0, "negative": -12.0},
    "one class dominates": {"num_positive": 900, "num_negative": 60},
    "one class dominates ": {"num_positive": 5, "num_negative": 123},
    "weights near 1": {"weights": 1 + 0.02 * np.sin(np.arange(500)), "clipped": np.zeros(500, bool)},
    "weights clipped": {"weights": np.full(500, np.e), "clipped": np.ones(500, bool)},
    "length drift": {"answers_before": TOKENS, "answers_after": TOKENS * 1.9},
    "length drift ": {"answers_before": TOKENS, "answers_after": TOKENS * 0.3},
    "reward hacking by length": {
        "positive_lengths": TOKENS + 90,
        "negative_lengths": TOKENS,
        "answers_before": TOKENS,
        "answers_after": TOKENS * 1.3,
    },
    "reward hacking by length ": {
        "positive_lengths": TOKENS,
        "negative_lengths": TOKENS + 90,
        "answers_before": TOKENS,
        "answers_after": TOKENS * 0.75,
    },
    "λ_r saturates": {"positive": -25.0, "negative": -70.0, "kl": -3.0, "undesirable_weight": 4.0},
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_it_names_each_planted_fault_and_nothing_else(fault, seed):
    counts = {"num_positive": 200, "num_negative": 130} if fault == "λ_r saturates" else {}
    found = find_faults(made_up(seed, **{**counts, **FAULTS[fault]}))
    assert [finding.name for finding in found] == [fault.strip()]
    assert len(found[0].to_try) > 20 and "nan" not in found[0].says


def test_a_low_kl_is_no_fault_where_right_traces_gain_and_are_far_ahead():
    assert find_faults(made_up(0, positive=5.0, negative=-12.0, kl=-8.0)) == []


@pytest.mark.parametrize(("column", "value"), [("loss", np.nan), ("grad_norm", np.inf), ("grad_norm", np.nan)])
def test_of_a_training_that_diverged_nothing_else_is_told(column, value):
    record = made_up(0, steps=20, **FAULTS["one class dominates"])
    record.metrics.loc[15:, column] = value
    (found,) = find_faults(record)
    assert found.name == "diverged" and f"{column} is {value} at step 16 of 20" in found.says
    assert "higher" not in found.to_try and " 10 times" not in found.to_try


def test_a_gradient_norm_that_is_not_logged_is_no_divergence():
    record = made_up(0)
    record.metrics["grad_norm"] = row_of_metrics({"step": 1, "epoch": 1, "loss": 1, "learning_rate": 1}, 0.1)[
        "grad_norm"
    ]
    assert find_faults(record) == []


def test_length_that_is_rewarded_in_the_curves_is_told_without_answers():
    record = made_up(0, answers_before=None, answers_after=None)
    record.metrics["length_correlation"] = 0.93
    assert [finding.name for finding in find_faults(record)] == ["reward hacking by length"]


def correlations(rewards_of, *, rows=8, steps=12, seed=0):
    """What is logged in as many steps of made-up rows whose implicit rewards are a function of class and length."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        label, lengths = (
            torch.rand(rows, generator=generator) < 0.5,
            torch.randint(50, 200, (rows,), generator=generator),
        )
        mask = torch.arange(200) < lengths[:, None]
        noise = torch.randn(rows, generator=generator)
        rewards = rewards_of(label, lengths / 20, noise)
        found.append(length_correlation(rewards, {"label": label, "completion_mask": mask}).item())
    return found


@pytest.mark.parametrize("rows", [2, 8, 16])
@pytest.mark.parametrize(
    "rewards_of",
    [
        lambda label, length, noise: noise,
        lambda label, length, noise: torch.where(label, noise * 0.1, -length),
        lambda label, length, noise: torch.where(label, length, -length) + noise,
    ],
)
def test_length_is_not_blamed_for_chance_nor_for_a_class_that_learns_alone(rewards_of, rows):
    record, found = made_up(0, steps=12), []
    for seed in range(20):
        record.metrics["length_correlation"] = correlations(rewards_of, rows=rows, seed=seed)
        found += find_faults(record)
    assert found == []


@pytest.mark.parametrize(("rows", "sign"), [(8, 1), (16, -1)])
def test_length_that_is_rewarded_in_both_classes_is_heard(rows, sign):
    record = made_up(0, steps=40)
    record.metrics["length_correlation"] = correlations(
        lambda label, length, noise: sign * length + 2.0 * label + 0.3 * noise, rows=rows, steps=40
    )
    assert [finding.name for finding in find_faults(record)] == ["reward hacking by length"]
    record.metrics["implicit_reward_negative"] = np.nan  # of one class alone it may be that it learns
    assert "reward hacking by length" not in [finding.name for finding in find_faults(record)]


def test_of_a_few_steps_only_what_is_no_curve_is_judged():
    assert find_faults(made_up(0, steps=11, **{**FAULTS["loss flat"], "answers_after": None})) == []
    assert [each.name for each in find_faults(made_up(0, steps=3, **FAULTS["one class dominates"]))]


def sft(losses):
    return TrainingRecord("sft", pd.DataFrame({"loss": losses}))


def test_of_supervised_training_the_loss_alone_is_judged():
    assert find_faults(sft(np.linspace(2.0, 1.4, 40))) == []
    assert [each.name for each in find_faults(sft(np.full(40, 2.0)))] == ["loss flat"]
    assert [each.name for each in find_faults(sft(np.linspace(1.4, 2.0, 40)))] == ["loss rises"]


@pytest.mark.parametrize(
    ("steps", "gain", "noise"), [(12, 0.05, 0.1), (12, 0.2, 0.2), (330, 0.02, 0.05), (100, 0.02, 0.02)]
)
def test_the_noise_of_steps_is_not_taken_for_a_loss_that_is_flat_or_rises(steps, gain, noise):
    generator = np.random.default_rng(0)
    course = np.linspace(2.0, 2.0 * (1 - gain), steps)
    found = [find_faults(sft(course * (1 + noise * generator.normal(size=steps)))) for _ in range(100)]
    assert sum(map(bool, found)) <= 1


def test_a_loss_that_is_flat_or_rises_is_heard_through_noise():
    generator = np.random.default_rng(0)
    flat, rising = np.full(400, 2.0), np.linspace(1.4, 2.0, 40)
    for name, course, noise in (("loss flat", flat, 0.01), ("loss rises", rising, 0.04)):
        for _ in range(20):
            found = find_faults(sft(course * (1 + noise * generator.normal(size=len(course)))))
            assert [each.name for each in found] == [name]


@pytest.mark.parametrize("steps", [12, 60])
def test_nor_is_the_noise_of_implicit_rewards(steps):
    for seed in range(20):
        record = made_up(seed, steps=steps, positive=1.5, negative=-1.5)
        generator = np.random.default_rng(seed)
        for name in IMPLICIT_REWARDS:
            record.metrics[name] += generator.normal(0, 3, steps)
        assert find_faults(record) == []


def trained(model_dir, tmp_path, section, variant="mr_align", **options):
    """The record of a real training by our own loop; options are fields of the config."""
    common = {**section.model_dump(exclude_unset=True), "num_epochs": 12, "sft_learning_rate": 1e-2}
    common["global_batch_size"] = 10  # all rows, so that no step's loss is another's by its rows
    section = TrainConfig.model_validate({**common, **options})
    job = make_job(model_dir, tmp_path / variant, section, variant)
    result = train_adapter(job)
    return TrainingRecord(
        variant,
        result.metrics,
        desirable_weight=section.desirable_weight,
        undesirable_weight=section.undesirable_weight,
        num_positive=result.counts["positive"],
        num_negative=result.counts["negative"],
    )


@pytest.mark.parametrize("variant", ["sft", "kto", "mr_align"])
def test_it_is_silent_on_real_healthy_trainings_and_hears_that_a_rate_is_too_low(model_dir, tmp_path, section, variant):
    assert find_faults(trained(model_dir, tmp_path, section, variant)) == []
    slow = trained(model_dir, tmp_path, section, variant, learning_rate=1e-7, sft_learning_rate=1e-9)
    assert [each.name for each in find_faults(slow)] == ["loss flat"]


def test_it_hears_a_real_training_that_unlearns_everything(model_dir, tmp_path, section):
    record = trained(model_dir, tmp_path, section, "kto", undesirable_weight=6.0, learning_rate=0.1)
    names = [each.name for each in find_faults(record)]
    assert "one class dominates" in names and {"λ_r saturates", "KL stuck at 0"} & set(names)


@pytest.mark.parametrize(("learning_rate", "names"), [(1e-2, []), (1e-8, ["loss flat"])])
def test_as_a_callback_it_warns_in_a_trl_script(model_dir, tmp_path, caplog, learning_rate, names):
    doctor = TrainingDoctor()
    settings = {"learning_rate": learning_rate, "num_train_epochs": 5, "logging_steps": 1, "save_strategy": "no"}
    args = KTOConfig(
        str(tmp_path), per_device_train_batch_size=4, max_length=None, use_cpu=True, bf16=False, **settings
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    rows = rows_for_trl(make_examples(10, num_questions=6))
    MRAlignKTOTrainer(str(model_dir), args=args, train_dataset=rows, peft_config=lora, callbacks=[doctor]).train()
    assert [finding.name for finding in doctor.faults] == names
    assert caplog.text.count("training doctor: loss flat") == len(names)


@pytest.fixture
def begun(tmp_path):
    """A callback that has seen a training of some rows begin, and what it then knows."""

    def begin(examples, **options):
        doctor = TrainingDoctor(**options)
        loader = DataLoader(rows_for_trl(examples))
        doctor.on_train_begin(KTOConfig(str(tmp_path), bf16=False, use_cpu=True), None, None, train_dataloader=loader)
        return doctor._known

    return begin


def test_the_callback_judges_the_rows_that_are_trained_on(begun):
    examples = make_examples(10, num_questions=6)
    positives = [number for number, example in enumerate(examples) if example.is_positive]
    assert (begun(examples).num_positive, begun(examples).num_negative) == (5, 5)
    known = begun(examples, rows=positives)
    assert (known.num_positive, known.num_negative, len(known.positive_lengths)) == (5, 0, 5)


def test_the_callback_judges_the_weights_of_segments_and_not_those_of_the_answer(begun):
    examples = make_examples(6, num_questions=3)
    far = [each._replace(weights=[1.8] + [1.0] * 60, completion_ids=[1] * 61) for each in examples]
    near = [each._replace(weights=[1.8, *[1.01] * 60, 1.0], completion_ids=[1] * 62) for each in examples]
    ones = [each._replace(weights=[1.0] * 9, completion_ids=[1] * 9) for each in examples]
    found = [[fault.name for fault in find_faults(begun(rows))] for rows in (far, near, ones)]
    assert found == [[], ["weights near 1"], ["weights near 1"]]

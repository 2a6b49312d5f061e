import gc
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mralign_core.config import ModelConfig, StorageConfig
from mralign_core.errors import ConfigError, NoCandidatesError
from mralign_core.training.fit import train_adapter
from mralign_core.training.job import ReferenceJob, TrainingJob
from mralign_core.training.reference import compute_reference
from tests.core.training.tiny import make_candidates, make_segment_weights

MODEL = ModelConfig(path="org/tiny", dtype="float32", device="cpu")
FACTS = {"questions": "made up", "yield": "10 of 12 traces"}


def train(model_dir, directory, section, variant="mr_align", candidates=None, **options):
    candidates = make_candidates(10, num_questions=6) if candidates is None else candidates
    segment_weights = make_segment_weights(candidates) if variant == "mr_align" else None
    job = TrainingJob(
        **{"model": MODEL, "seed": 3, "segment_weights": segment_weights, **options},
        model_path=str(model_dir),
        candidates=candidates,
        variant=variant,
        train=section,
        directory=directory,
        facts=FACTS,
    )
    return train_adapter(job)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("variant", ["sft", "kto", "mr_align"])
def test_an_adapter_and_nothing_else_is_written_and_peft_loads_it(model_dir, tmp_path, section, variant):
    result = train(model_dir, tmp_path / "adapter", section, variant)
    assert set(files(tmp_path / "adapter")) == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    after = adapted(ids).logits
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, after, rtol=1e-4, atol=1e-4)
    assert len(result.metrics) == 2 * 3
    assert result.metrics["kl_raw"].isna().all() == (variant == "sft")


def test_sft_takes_as_many_steps_as_kto_and_sees_only_positives(model_dir, tmp_path, section):
    kto = train(model_dir, tmp_path / "kto", section, "kto")
    sft = train(model_dir, tmp_path / "sft", section, "sft")
    assert len(sft.metrics) == len(kto.metrics)
    assert (kto.counts["positive"], kto.counts["negative"]) == (5, 5)
    assert (sft.counts["positive"], sft.counts["negative"]) == (5, 0)
    assert sft.metrics["learning_rate"].max() == section.sft_learning_rate


def test_weights_change_the_result_and_the_baselines_ignore_them(model_dir, tmp_path, section):
    kto = train(model_dir, tmp_path / "kto", section, "kto")
    segment_weights = make_segment_weights(make_candidates(10, num_questions=6))
    ignored = train(model_dir, tmp_path / "ignored", section, "kto", segment_weights=segment_weights)
    ones = train(model_dir, tmp_path / "ones", section, "mr_align", segment_weights=segment_weights.assign(weight=1.0))
    weighted = train(model_dir, tmp_path / "weighted", section, "mr_align")
    assert kto.metrics.equals(ignored.metrics) and kto.metrics.equals(ones.metrics)
    assert not kto.metrics.equals(weighted.metrics)


SCRIPT = """
import sys
from pathlib import Path
from tests.core.training.test_fit import train
from mralign_core.config import TrainConfig
section = TrainConfig.model_validate_json(sys.argv[3])
train(sys.argv[1], Path(sys.argv[2]), section)
"""


def test_same_arguments_same_bytes_in_another_process_from_another_path(model_dir, tmp_path, section):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(model_dir)
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(elsewhere), str(tmp_path / "there"), section.model_dump_json()],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
    )
    # Nothing but the adapter: no checkpoint, no log folder in the working directory.
    assert {path.name for path in tmp_path.iterdir()} == {"there", "elsewhere"}
    train(model_dir, tmp_path / "here", section)
    train(model_dir, tmp_path / "again", section)
    assert files(tmp_path / "here") == files(tmp_path / "again") == files(tmp_path / "there")


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.core.training.test_fit import kept_in, train
from mralign_core.config import TrainConfig
from mralign_core.training import fit


class Mortal(fit.StoredCheckpoints):
    def save(self, state):
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(state)


fit.StoredCheckpoints = Mortal
section = TrainConfig.model_validate_json(sys.argv[4])
train(sys.argv[1], Path(sys.argv[2]), section, **kept_in(sys.argv[3]))
"""


def kept_in(root):
    """Where a training keeps its checkpoints."""
    return {"storage": StorageConfig(root=str(root)), "key": "a" * 64}


def test_killed_with_signal_9_and_gone_on_elsewhere_it_gives_the_same_bytes(model_dir, tmp_path, section, caplog):
    options = {"checkpoint_minutes": 1e-9, "lora_dropout": 0.2, "kl_every": 2, "kl_decay": 0.5}
    section = section.model_copy(update=options)
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            str(model_dir),
            str(tmp_path / "lost"),
            str(tmp_path / "store"),
            section.model_dump_json(),
        ],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "lost").exists()
    elsewhere = shutil.move(tmp_path / "store", tmp_path / "moved")
    caplog.set_level("INFO", "mralign_core.training")
    resumed = train(model_dir, tmp_path / "resumed", section, **kept_in(elsewhere))
    assert "going on from the checkpoint after step 3 of 6" in caplog.text
    whole = train(model_dir, tmp_path / "whole", section)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert resumed.metrics.equals(whole.metrics)


def test_seed_changes_the_adapter(model_dir, tmp_path, section):
    weights = []
    for seed in (0, 1):
        train(model_dir, tmp_path / str(seed), section, seed=seed)
        weights.append(load_file(tmp_path / str(seed) / "adapter_model.safetensors"))
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_config_and_card_name_the_base_model_and_no_path(model_dir, tmp_path, section):
    train(model_dir, tmp_path / "adapter", section)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert config["base_model_name_or_path"] == "org/tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    for text in ("base_model: org/tiny", "10 of 12 traces", "- seed: 3", "- beta: 0.1", "- positive: 5"):
        assert text in card
    assert str(model_dir) not in card + json.dumps(config)


def test_it_is_quiet(model_dir, tmp_path, section, capfd):
    train(model_dir, tmp_path / "adapter", section)
    captured = capfd.readouterr()
    assert "loss" not in captured.out + captured.err
    assert captured.out == ""


def test_positives_only_leaves_the_negatives_out_of_as_many_steps(model_dir, tmp_path, section):
    only = section.model_copy(update={"positives_only": True})
    both, positives = (train(model_dir, tmp_path / name, part, "kto") for name, part in (("a", section), ("b", only)))
    assert (positives.counts["positive"], positives.counts["negative"]) == (5, 0)
    assert len(both.metrics) == len(positives.metrics)
    assert positives.metrics["implicit_reward_negative"].isna().all()
    assert not positives.metrics["kl_raw"].isna().any()


def test_the_given_reference_is_used_as_it_is(model_dir, tmp_path, section):
    candidates = make_candidates(10, num_questions=6)
    job = ReferenceJob(model_path=str(model_dir), model=MODEL, train=section, candidates=candidates)
    table = compute_reference(job)
    train(model_dir, tmp_path / "made", section)
    train(model_dir, tmp_path / "given", section, reference=table)
    assert files(tmp_path / "made") == files(tmp_path / "given")
    lower = table.assign(kl_logp=table["kl_logp"] - 100)
    assert train(model_dir, tmp_path / "lower", section, reference=lower).metrics["kl_raw"].min() > 90


def test_long_rows_are_counted(model_dir, tmp_path, section):
    candidates = make_candidates(10, num_questions=6)
    candidates.at[4, "completion_ids"] = [1] * 80
    assert train(model_dir, tmp_path / "adapter", section, candidates=candidates).counts["too_long"] == 1


@pytest.mark.parametrize(
    ("variant", "polarity", "message"),
    [
        ("kto", "positive", "'kto' needs positive and negative traces, got 4 positive and 0 negative"),
        ("mr_align", "negative", "got 0 positive and 4 negative"),
        ("sft", "negative", "'sft' needs positive traces, got 0 positive"),
    ],
)
def test_a_single_polarity_is_an_error(model_dir, tmp_path, section, variant, polarity, message):
    candidates = make_candidates(4).assign(polarity=polarity)
    with pytest.raises(NoCandidatesError, match=message):
        train(model_dir, tmp_path / "adapter", section, variant, candidates=candidates)
    assert not (tmp_path / "adapter").exists()


def test_mr_align_without_weights_is_an_error(model_dir, tmp_path, section):
    with pytest.raises(ConfigError, match="needs the table 'segment_weights'"):
        train(model_dir, tmp_path / "adapter", section, segment_weights=None)


def test_half_precision_is_refused_and_bfloat16_trains(model_dir, tmp_path, section):
    with pytest.raises(ConfigError, match="float16"):
        train(model_dir, tmp_path / "half", section, model=MODEL.model_copy(update={"dtype": "float16"}))
    brain = MODEL.model_copy(update={"dtype": "bfloat16"})
    train(model_dir, tmp_path / "brain", section, model=brain)
    weights = load_file(tmp_path / "brain" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_nothing_of_a_training_stays_in_memory(model_dir, tmp_path, section):
    def num_parameters():
        gc.collect()
        return sum(isinstance(each, torch.nn.Parameter) for each in gc.get_objects())

    train(model_dir, tmp_path / "first", section)
    before = num_parameters()
    train(model_dir, tmp_path / "second", section)
    assert num_parameters() == before

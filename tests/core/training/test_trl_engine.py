"""Training by TRL writes what our own loop writes: the same adapter but for rounding, and goes on where it stopped."""

import weakref

import pytest
import torch
from safetensors.torch import load_file

from mralign_core.config import ModelConfig, StorageConfig, TrainConfig
from mralign_core.errors import ConfigError, OutOfMemory
from mralign_core.storage import ArtifactStore
from mralign_core.training import trl_engine
from mralign_core.training.base import load_base
from mralign_core.training.fit import Watch, train_adapter
from mralign_core.training.job import ReferenceJob, TrainingJob
from mralign_core.training.reference import compute_reference
from mralign_core.training.trl_engine import TrlCheckpoints, train_by_trl
from tests.core.training.tiny import make_candidates, make_segment_weights

MODEL = ModelConfig(path="org/tiny", dtype="float32", device="cpu")


def by_trl(section, **options):
    settings = {**section.model_dump(exclude_unset=True), "engine": "trl", "rows_per_forward": 4, **options}
    return TrainConfig.model_validate(settings)


def make_job(model_dir, directory, section, variant="mr_align", **options):
    candidates = make_candidates(10, num_questions=6)
    options = {"segment_weights": make_segment_weights(candidates), "model": MODEL, **options}
    return TrainingJob(
        model_path=str(model_dir),
        train=section,
        candidates=candidates,
        variant=variant,
        seed=3,
        directory=directory,
        facts={"questions": "made up"},
        **options,
    )


@pytest.fixture
def models(monkeypatch):
    """Weak references to the base models that are loaded."""
    seen = []

    def load(*arguments):
        model, end_token_id = load_base(*arguments)
        seen.append(weakref.ref(model))
        return model, end_token_id

    monkeypatch.setattr(trl_engine, "load_base", load)
    return seen


@pytest.mark.parametrize("variant", ["sft", "kto", "mr_align"])
def test_both_engines_train_the_same_adapter(model_dir, tmp_path, section, variant, capfd, caplog, models):
    candidates = make_candidates(10, num_questions=6)
    reference = compute_reference(
        ReferenceJob(model_path=str(model_dir), model=MODEL, train=section, candidates=candidates)
    )
    table = None if variant == "sft" else reference
    ours = train_adapter(make_job(model_dir, tmp_path / "ours", section, variant, reference=table))
    theirs = train_by_trl(make_job(model_dir, tmp_path / "theirs", by_trl(section), variant, reference=table))
    assert [model() for model in models] == [None]  # else the next variant's would be beside it
    captured = capfd.readouterr()
    assert captured.out == "" and "loss" not in captured.err
    assert "training doctor" not in caplog.text  # weights of 1 are meant in KTO
    assert theirs.counts == ours.counts
    for column in ours.metrics.columns:
        assert theirs.metrics[column].tolist() == pytest.approx(
            ours.metrics[column].tolist(), rel=1e-4, abs=1e-5, nan_ok=True
        ), column
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {
        path.name for path in (tmp_path / "ours").iterdir()
    }
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert first.keys() == second.keys()
    for name in first:
        scale = first[name].abs().max().item()
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-4 * scale, msg=name)
    assert (tmp_path / "theirs" / "adapter_config.json").read_text() == (
        tmp_path / "ours" / "adapter_config.json"
    ).read_text()
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert "- engine: trl" in card and "engine" not in (tmp_path / "ours" / "README.md").read_text()


class Stopped(Exception):
    pass


def test_a_training_that_was_stopped_goes_on_from_the_store_to_the_same_bytes(model_dir, tmp_path, section):
    section = by_trl(section, checkpoint_minutes=1e-9, lora_dropout=0.2, global_batch_size=8)  # two steps an epoch
    storage, key = StorageConfig(root=str(tmp_path / "store")), "a" * 64
    kept = {"storage": storage, "key": key}
    seen = []

    def stop(step, steps, row):
        seen.append(step)
        if len(seen) == 4:
            raise Stopped

    lost = make_job(model_dir, tmp_path / "lost", section, **kept)
    with pytest.raises(Stopped):
        train_by_trl(lost, Watch(on_progress=stop))
    assert not (tmp_path / "lost").exists()
    assert ArtifactStore(storage).keys(f"checkpoint/{key}") == ["step-000000003"]
    resumed = train_by_trl(make_job(model_dir, tmp_path / "resumed", section, **kept), Watch(on_progress=stop))
    assert seen == [1, 2, 3, 4, 4]
    whole = train_by_trl(make_job(model_dir, tmp_path / "whole", section))
    assert resumed.metrics.equals(whole.metrics)
    for name in ("adapter_model.safetensors", "README.md"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_the_positives_in_bfloat16_and_a_reference_that_trl_computes_work_as_they_do_in_our_loop(
    model_dir, tmp_path, section
):
    section = section.model_copy(update={"positives_only": True})
    brain = MODEL.model_copy(update={"dtype": "bfloat16"})
    jobs = [
        make_job(model_dir, tmp_path / each.engine, each, "kto", model=brain) for each in (section, by_trl(section))
    ]
    ours, theirs = train_adapter(jobs[0]), train_by_trl(jobs[1])
    assert theirs.counts == ours.counts and theirs.counts["negative"] == 0
    assert theirs.metrics["implicit_reward_negative"].isna().all()
    assert theirs.metrics["loss"].tolist() == pytest.approx(ours.metrics["loss"].tolist(), rel=0.05)
    weights = load_file(tmp_path / "trl" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    (tmp_path / "written").mkdir()
    (tmp_path / "written" / "state").write_text("1")
    checkpoints = TrlCheckpoints(store, "b" * 64)
    checkpoints.save(tmp_path / "written", 2)
    assert checkpoints.latest(tmp_path / "first") == tmp_path / "first" / "checkpoint-2"
    assert (tmp_path / "first" / "checkpoint-2" / "state").read_text() == "1"
    next((tmp_path / "store").rglob("state")).write_text("22")
    assert checkpoints.latest(tmp_path / "second") is None
    assert "trainer/state has 2 bytes, 1 were written" in caplog.text


def test_a_training_that_diverges_or_does_not_fit_says_what_to_change(
    model_dir, tmp_path, section, models, monkeypatch
):
    job = make_job(model_dir, tmp_path / "a", by_trl(section, learning_rate=1e30, warmup_ratio=0.0), "kto")
    with pytest.raises(ConfigError, match=r"training diverged at step . of 6.*lower train.learning_rate"):
        train_by_trl(job)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trl_engine.MRAlignKTOTrainer, "_compute_loss", full)
    with pytest.raises(OutOfMemory, match=r"a forward pass of 4 rows: lower train.rows_per_forward"):
        train_by_trl(make_job(model_dir, tmp_path / "b", by_trl(section)))
    assert [model() for model in models] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_every": 2}, "train.kl_every has no effect when train.engine is 'trl'"),
        ({"accelerate_config": "ddp.yaml"}, "remove it, set train.engine to 'own', or start a script"),
        ({"rows_per_forward": 3}, "train.global_batch_size 64 is no multiple of train.rows_per_forward 3"),
        ({"engine": "own", "rows_per_forward": 4}, "train.rows_per_forward has no effect when train.engine is 'own'"),
    ],
)
def test_what_an_engine_can_not_serve_is_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"engine": "trl", **options})


def test_the_reference_of_a_training_by_trl_is_computed_in_passes_of_tokens_per_forward(model_dir, section):
    """It is ours under either engine, and what an error of memory there says to lower."""
    section, sizes = by_trl(section, tokens_per_forward=20), []
    job = ReferenceJob(model_path=str(model_dir), model=MODEL, train=section, candidates=make_candidates(4))
    compute_reference(job, lambda done, of: sizes.append((done, of)))
    assert len(sizes) > 4 and sizes[-1] == (8, 8)

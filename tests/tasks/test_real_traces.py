"""Real traces of a real reasoning model, with a real byte-level tokenizer, from import to weights and an adapter."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from mralign_core.config import RunConfig
from mralign_core.reporting.diagnostic_findings import findings
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.estimate import diagnose_transitions, estimate_transitions, read_diagnostics
from tasks.generate import select_candidates
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tasks.reward import weigh_segments
from tasks.train import reference_logps, train_adapter
from tests.stages import label

REAL_DATA = os.environ.get("MRALIGN_REAL_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL_DATA, reason="MRALIGN_REAL_DATA names no folder with real traces"),
]


def tiny_model(folder: Path) -> Path:
    """A random Qwen3 of two layers behind the real tokenizer, with the think tags that Qwen3 adds to it."""
    tokenizer = AutoTokenizer.from_pretrained(Path(REAL_DATA, "tokenizers/qwen2"))
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def config_of(folder: Path, lines: list[str], **annotate: object) -> RunConfig:
    """A run that imports these traces and labels them offline, with a tiny model."""
    traces = folder / "traces.jsonl"
    traces.write_text("\n".join(lines))
    offline = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    bounds = {"min_segments": 2, "max_segments": 60, "min_reasoning_tokens": 20, "max_reasoning_tokens": 4000}
    generate = {"source": "traces", "traces_path": str(traces), "answer_match": "contains", **bounds}
    return RunConfig.model_validate(
        {
            "storage": {"root": str(folder / "store")},
            "model": {"path": str(tiny_model(folder / "model")), "dtype": "float32", "device": "cpu"},
            "generate": generate | {"traces_per_question": "all_distinct"},
            "annotate": offline | annotate,
            "train": {"report_to": "none", "num_epochs": 1, "global_batch_size": 2, "max_length": 420, "lora_r": 2},
        }
    )


def imported(config: RunConfig) -> tuple[ArtifactRef, ArtifactRef]:
    """The model and the candidates."""
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    held_out = load_evaluation_questions.run_here(config)
    return model, select_candidates.run_here(config, questions, model, evaluation_questions=held_out)


def test_labels_of_offline_annotators_tell_nothing_about_right_and_wrong_and_it_is_said(tmp_path: Path):
    lines = []
    for name in ("main", "samples"):
        for number, line in enumerate(Path(REAL_DATA, f"traces/race_nq_ds7b_{name}.jsonl").read_text().splitlines()):
            row = json.loads(line)
            polarity = "positive" if row["correct_contains"] else "negative"
            lines.append(json.dumps(row | {"id": f"{name}-{number}", "polarity": polarity}))
    config = config_of(tmp_path, lines, cue_drop_prob=0.0, cue_flip_prob=0.0)
    _, candidates = imported(config)
    annotations = label(config, candidates)
    transitions = estimate_transitions.run_here(config, candidates, annotations)
    made = diagnose_transitions.run_here(config, candidates, annotations, transitions)
    found = read_diagnostics(ArtifactStore(config.storage), made)
    overall = found.discrimination[0].overall
    assert overall is not None and overall.verdict == "not shown" and 0.4 < overall.auc < 0.6
    assert overall.traces > 500 and overall.positive_questions > 25
    assert found.strata.polarities is not None, "one stratum is enough for it"
    assert findings(found)[0].startswith("Do the labels tell right from wrong on questions not seen? Not shown")


def test_from_real_traces_to_weights_and_an_adapter(tmp_path: Path):
    source = Path(REAL_DATA, "traces/race_nq_ds7b_main.jsonl")
    config = config_of(tmp_path, source.read_text().splitlines()[:60])
    model, candidates = imported(config)
    annotations = label(config, candidates)
    transitions = estimate_transitions.run_here(config, candidates, annotations)
    weighed = weigh_segments.run_here(config, candidates, annotations, transitions)
    reference = reference_logps.run_here(config, model, candidates, annotations)
    inputs = (model, candidates, annotations, reference, weighed)
    adapter = train_adapter.run_here(config, *inputs, variant="mr_align")

    store = ArtifactStore(config.storage)
    kept = store.read_table(candidates, "candidates.parquet")
    funnel = json.loads(store.open_file(candidates, "funnel.json").read_text())
    assert funnel[0]["kept"] == 60
    assert len(kept) == funnel[-1]["kept"] > 40
    for trace in kept.itertuples():
        for segment in trace.segments:
            assert trace.completion[segment["start"] : segment["end"]].strip()
        starts = [segment["token_start"] for segment in trace.segments]
        assert starts[0] == 0
        assert starts[1:] == [segment["token_end"] for segment in trace.segments][:-1]
    weights = store.read_table(weighed, "weights.parquet")["weight"].astype(float)
    assert weights.nunique() > 20
    assert (store.open_directory(adapter) / "adapter_model.safetensors").is_file()

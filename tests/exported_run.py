"""A run from a file of awkward traces to weights, with a tiny model and offline annotators: what is exported."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.last_run import remember
from tasks.estimate import estimate_transitions
from tasks.generate import select_candidates
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tasks.reward import weigh_segments
from tests.stages import label

BLANK = "\n\n"
AWKWARD = (
    "Let me recall: 日本 🎉🏳️‍🌈 e\u0301 \u202eabc\u2028def\u0085ghi.",
    'A \x00 and \x1b[31m, a tab\t, a quote " and a back\\slash.\r\nThen a carriage return\rhere.',
    "{system} {prompt} {{braces}} <b>A & B</b> | a bar ``` and ---",
    "w " * 4_000,
)


def trace(name, number, right, texts, **more):
    thinking = BLANK.join(texts)
    answer = f"Town {number}" if right else "Nowhere"
    row = {"id": name, "question": f"Which town is {number}?", "gold": [f"Town {number}"], "thinking": thinking}
    return {**row, "answer": answer, **more}


def awkward_traces():
    """Lines of a JSONL file: names that differ in case only, repeated texts, several traces of one question."""
    rows = []
    for number in range(6):
        texts = [f"Let me recall town {number}.", AWKWARD[number % 4], "Wait, check that again.", "So I am sure."]
        rows.append(trace(f"T{number}", number, number % 2 == 0, texts))
        rows.append(trace(f"t{number}", number, number % 2 == 1, texts[:3]))
    rows.append(trace("T0 again", 0, True, ["Hm.", "Hm.", "Hm."]))
    return rows


def save_model(folder: Path) -> Path:
    """A random Qwen3 of two layers, with a tokenizer of bytes and no chat template."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(fast), **sizes, **heads)).save_pretrained(folder)
    return folder


class MadeRun(NamedTuple):
    """A run up to its weights."""

    config: RunConfig
    refs: dict[str, ArtifactRef]

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.config.storage)


def config_of(folder: Path, model: Path, traces: Path, **sections: dict[str, Any]) -> RunConfig:
    """A run from a file of traces, or from an export, in a store of its own."""
    offline = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}
    generate = {
        "source": "traces",
        "traces_path": str(traces),
        "min_segments": 2,
        "min_reasoning_tokens": 0,
        "max_reasoning_tokens": 100_000,
        "traces_per_question": "all_distinct",
    }
    return RunConfig.model_validate(
        {
            "name": "exported",
            "storage": {"root": str(folder / "store")},
            "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
            "generate": generate | sections.pop("generate", {}),
            "annotate": offline | sections.pop("annotate", {}),
            **sections,
        }
    )


def make_run(config: RunConfig) -> MadeRun:
    """Make all that is exported, in this process, and note it as the last run."""
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    held_out = load_evaluation_questions.run_here(config)
    candidates = select_candidates.run_here(config, questions, model, evaluation_questions=held_out)
    annotations = label(config, candidates)
    transitions = estimate_transitions.run_here(config, candidates, annotations)
    weights = weigh_segments.run_here(config, candidates, annotations, transitions)
    refs = {"candidates": candidates, "annotations": annotations, "transitions": transitions, "weights": weights}
    remember(config, **refs)
    return MadeRun(config, refs)


def awkward_run(folder: Path) -> MadeRun:
    """The run of :func:`awkward_traces`."""
    folder.mkdir(exist_ok=True)
    path = folder / "my traces.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in awkward_traces()), encoding="utf-8")
    return make_run(config_of(folder, save_model(folder / "model"), path))

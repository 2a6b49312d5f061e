"""Memory and time of what follows sampling, by the number of questions: joining the shards, and selecting.

Writes shards of random draws (pocket words, 700 tokens with thinking, one draw at a time, 10 % of questions with a
polarity) into a temporary store, then runs the two tasks in a process of their own and reports its peak memory over
what it had before. The tables grow ninetyfold; the memory must not.

Run ``python -m benchmarks.generation_scale`` from the repository.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mralign_core.config import RunConfig, load_config
from mralign_core.models.load import load_tokenizer
from mralign_core.pocket.tokenizer import build_tokenizer
from mralign_core.pocket.world import build_world
from mralign_core.schemas.generations import GENERATIONS
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.engine.run import Built, Making
from tasks.engine.session import session
from tasks.engine.shards import chunks
from tasks.generate import collect_generations, read_draws, sample_shard, select_candidates
from tasks.prepare import load_questions, prepare_model

THINKING_TOKENS, SEGMENTS = 700, 8
POCKET = Path(__file__).resolve().parent.parent / "deployments" / "configs" / "pocket.yaml"
SHARD_SIZE = 256


def main() -> None:
    """Write the shards, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, nargs="+", default=[1_000, 10_000, 90_000], help="a row each")
    parser.add_argument("--measure", type=Path, help="measure on this folder and print JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options.measure)))
        return
    logging.getLogger("mralign_core").setLevel(logging.WARNING)  # a line a shard would bury the table
    print(f"{'questions':>10} {'draws':>9} {'tokens':>13} {'MB stored':>10} {'seconds':>8} {'peak MB':>8}")
    for num_questions in options.questions:
        with tempfile.TemporaryDirectory(prefix="generation-scale-") as root:
            draws = _write(Path(root), num_questions)
            command = [sys.executable, "-m", "benchmarks.generation_scale", "--measure", root]
            reply = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(reply.splitlines()[-1])
        print(
            f"{num_questions:>10,} {draws:>9,} {found['tokens']:>13,} {found['megabytes']:>10,.0f} "
            f"{found['seconds']:>8.1f} {found['peak_mb']:>8,.0f}"
        )


def _config(root: Path) -> RunConfig:
    bounds = {"generate.min_reasoning_tokens": 450, "generate.max_reasoning_tokens": 1000}
    return load_config(POCKET, {"storage.root": str(root), "generate.shard_size": SHARD_SIZE, **bounds})


def _write(root: Path, num_questions: int) -> int:
    """Publish questions, a tokenizer in place of a model, and shards of draws; returns how many draws."""
    config = _config(root)
    rng = np.random.default_rng(0)
    questions = _publish_questions(config, num_questions)
    model = prepare_model.work(config).produce(build=_save_tokenizer).ref
    tokenizer = load_tokenizer(ArtifactStore(config.storage).open_directory(model))
    asked = " ".join(question.text for question in build_world(0, 0.25).questions)
    words = sorted(set(tokenizer.encode(asked, add_special_tokens=False)))
    thoughts = [_thought(tokenizer, words, rng) for _ in range(200)]
    num_draws = 0
    with session():
        for numbers in chunks(collect_generations.work(config, questions, model), range(num_questions)):
            rows = [row for number in numbers for row in _draws_of(number, thoughts, tokenizer, rng)]
            num_draws += len(rows)

            def build(making: Making, rows: list[dict[str, Any]] = rows) -> Built:
                frame = pd.DataFrame(rows).astype(object)
                write_table(making.directory, "generations.parquet", frame, GENERATIONS)
                return Built(GENERATIONS.name)

            sample_shard.work(config, questions, model, numbers).produce(build=build)
    refs = {"questions": questions, "model": model}
    (root / "refs.json").write_text(json.dumps({name: ref.model_dump() for name, ref in refs.items()}))
    return num_draws


def _publish_questions(config: RunConfig, num_questions: int) -> ArtifactRef:
    rows = [
        {"question_id": f"q{n}", "question": f"Question {n}?", "answers": ["yes"], "source": "s", "split": "train"}
        for n in range(num_questions)
    ]

    def build(making: Making) -> Built:
        frame = pd.DataFrame(rows).assign(stratum="", scoring="exact_match", options=[[]] * len(rows)).astype(object)
        write_table(making.directory, "questions.parquet", frame, QUESTIONS)
        return Built(QUESTIONS.name)

    return load_questions.work(config).produce(build=build).ref


def _save_tokenizer(making: Making) -> Built:
    build_tokenizer().save_pretrained(making.directory)
    return Built()


def _thought(tokenizer: Any, words: list[int], rng: np.random.Generator) -> tuple[str, list[int]]:
    ids = rng.choice(words, THINKING_TOKENS).tolist()
    pieces = [tokenizer.decode(list(part)) for part in np.array_split(ids, SEGMENTS)]
    text = "<think>\n\n" + "\n\n".join(pieces) + "\n\n</think>\n\n<answer> yes </answer>"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return str(tokenizer.decode(encoded)), encoded


def _draws_of(
    number: int, thoughts: list[tuple[str, list[int]]], tokenizer: Any, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Three think-off draws, and one with thinking that is as wrong, or (one question in ten) three that differ."""
    row = {
        "question_id": f"q{number}",
        "prompt": "Question",
        "prompt_ids": [1],
        "finish_reason": "stop",
        "token_source": "sampled",
        "thinking_closed": True,
        "outcome": "ok",
    }
    chance = rng.random()
    off_is_right, num_thinking = chance < 0.05, 3 if chance < 0.1 else 1
    on_is_right = not off_is_right and num_thinking == 3
    off = "<answer> yes </answer>" if off_is_right else "<answer> no </answer>"
    off_row = {**row, "thinking_mode": "off", "thinking": None, "answer": off[9:-10], "em_thought": None}
    off_row |= {"completion": off, "completion_ids": tokenizer.encode(off, add_special_tokens=False)}
    off_row |= {"em_answer": off_is_right, "contains_answer": off_is_right}
    rows = [{**off_row, "draw": draw} for draw in range(3)]
    for draw in range(num_thinking):
        text, ids = thoughts[rng.integers(len(thoughts))]
        on_row = {**row, "thinking_mode": "on", "draw": draw, "completion": text, "completion_ids": ids}
        on_row |= {"thinking": text[9:-40], "answer": "yes", "em_thought": True}
        rows.append({**on_row, "em_answer": on_is_right, "contains_answer": on_is_right})
    return rows


def _measure(root: Path) -> dict[str, float]:
    config = _config(root)
    record = json.loads((root / "refs.json").read_text())
    questions, model = (ArtifactRef.model_validate(record[name]) for name in ("questions", "model"))
    load_tokenizer(ArtifactStore(config.storage).open_directory(model))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    generations = collect_generations.run_here(config, questions, model)
    select_candidates.run_here(config, questions, model, generations)
    tokens = read_draws(ArtifactStore(config.storage), generations)["tokens"].sum()
    return {
        "tokens": int(tokens),
        "megabytes": sum(file.stat().st_size for file in root.rglob("*.parquet")) / 1e6,
        "seconds": time.monotonic() - started,
        "peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


if __name__ == "__main__":
    main()

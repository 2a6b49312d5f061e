"""The pocket model: a tiny Qwen3 taught a world's facts, direct answers, and the habit of thinking by the grammar.

What it is taught decides what it may be tested on: traces come from pretraining questions only, and direct answers from
pretraining questions and popular ones, popularity being independent of the split. Every fact is taught as a statement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mralign_core.pocket.grammar import answer_completion, statement, write_trace
from mralign_core.pocket.tokenizer import build_tokenizer
from mralign_core.pocket.world import Question, World

logger = logging.getLogger("mralign_core.pocket")

# Shape suffixes: R packed rows, T tokens of a row, N tokens that are learnt from.
BATCH_SIZES = {"statement": 96, "think_off": 48, "think_on": 24}
ROW_TOKENS = 192
LEARNING_RATE = 4e-3
BETAS = (0.9, 0.98)
WARMUP_STEPS = 50
DECAY_SHARE = 0.3
MAX_GRAD_NORM = 1.0


class Example(NamedTuple):
    """A text to learn the completion of."""

    kind: str
    prompt_ids: list[int]
    completion_ids: list[int]


class PackedBatch(NamedTuple):
    """Examples side by side in rows; each attends to itself only, and positions start anew with each."""

    input_ids_RT: Tensor
    position_ids_RT: Tensor
    attention_mask_R1TT: Tensor
    source_N: Tensor
    """Flat index of the token before each learnt one."""
    target_N: Tensor
    weight_N: Tensor
    """One over the number of learnt tokens of the same kind, so that the weighted sum is a sum of means."""


def train_pocket_model(
    world: World,
    *,
    steps: int,
    seed: int,
    directory: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Pretrain the pocket model and write it, with its tokenizer, as an ordinary model directory.

    Runs on one thread, which is fastest at this size and makes the result a function of its arguments alone on one
    machine. The global random state is left as it was.

    Args:
        world: what to teach.
        steps: optimiser steps; see ``PocketConfig.pretrain_steps``.
        seed: decides initial weights and the order of the examples.
        directory: gets config.json, generation_config.json, model.safetensors and the tokenizer's files.
        on_progress: called with (steps done, steps) after each step.

    Returns:
        Mean cross-entropy of the last 20 steps by kind of example (``loss_statement`` …), and ``num_parameters``.
    """
    tokenizer = build_tokenizer()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(pocket_config(tokenizer))
        losses = _fit(model, Curriculum(world, tokenizer, seed), steps, on_progress)
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    logger.info("pretrained the pocket model for %d steps, last losses %s", steps, losses)
    return {**losses, "num_parameters": float(model.num_parameters())}


def pocket_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Two layers of Qwen3 with tied embeddings, 278 thousand parameters."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=24,
        intermediate_size=288,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )


class Curriculum:
    """Draws the examples of each step: fact statements, direct answers, and freshly written traces."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._world = world
        self._tokenizer = tokenizer
        self._generator = np.random.default_rng([seed, 1])
        self._statements = [
            Example("statement", *map(self._encode, statement(fact))) for fact in world.facts.values()
        ]
        self._direct_answers = [
            Example("think_off", self._prompt(question, thinking=False), self._turn(answer_completion(question.answer)))
            for question in world.questions
            if question.split == "pretrain" or question.popular
        ]
        self._traced = world.split("pretrain")
        self._trace_prompts = [self._prompt(question, thinking=True) for question in self._traced]

    def draw(self) -> list[Example]:
        """The examples of one step."""
        statements = [self._statements[i] for i in self._pick("statement", len(self._statements))]
        answers = [self._direct_answers[i] for i in self._pick("think_off", len(self._direct_answers))]
        return statements + answers + [self._trace(i) for i in self._pick("think_on", len(self._traced))]

    def _pick(self, kind: str, population: int) -> list[int]:
        return self._generator.choice(population, BATCH_SIZES[kind], replace=False).tolist()

    def _trace(self, index: int) -> Example:
        trace = write_trace(self._world, self._traced[index], self._generator)
        return Example("think_on", self._trace_prompts[index], self._turn(trace.completion))

    def _prompt(self, question: Question, thinking: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=False,
        )
        return self._encode(text)

    def _turn(self, completion: str) -> list[int]:
        return [*self._encode(completion), self._tokenizer.eos_token_id]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Pack examples into rows, the longest first, each into the first row with room for it."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=_length, reverse=True):
        index = next((i for i, free in enumerate(room) if free >= _length(example)), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(ROW_TOKENS)
        rows[index].append(example)
        room[index] -= _length(example)
    return _tensors(rows)


def _length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.completion_ids)


def _tensors(rows: Sequence[Sequence[Example]]) -> PackedBatch:
    shape = (len(rows), ROW_TOKENS)
    ids, positions, owners = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    learnt: list[np.ndarray] = []
    kinds: list[str] = []
    for index, row in enumerate(rows):
        start = 0
        for owner, example in enumerate(row):
            end = start + _length(example)
            ids[index, start:end] = example.prompt_ids + example.completion_ids
            positions[index, start:end] = np.arange(end - start)
            owners[index, start:end] = owner
            learnt.append(index * ROW_TOKENS + np.arange(start + len(example.prompt_ids), end))
            kinds += [example.kind] * len(example.completion_ids)
            start = end
    target = np.concatenate(learnt)
    counts = {kind: kinds.count(kind) for kind in BATCH_SIZES}
    owners_RT = torch.from_numpy(owners)
    causal_TT = torch.ones(ROW_TOKENS, ROW_TOKENS, dtype=torch.bool).tril()
    return PackedBatch(
        input_ids_RT=torch.from_numpy(ids),
        position_ids_RT=torch.from_numpy(positions),
        attention_mask_R1TT=(owners_RT[:, None, :, None] == owners_RT[:, None, None, :]) & causal_TT,
        source_N=torch.from_numpy(target - 1),
        target_N=torch.from_numpy(ids.reshape(-1)[target]),
        weight_N=torch.tensor([1 / counts[kind] for kind in kinds]),
    )


def _fit(
    model: Qwen3ForCausalLM, curriculum: Curriculum, steps: int, on_progress: Callable[[int, int], None] | None
) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    history = []
    model.train()
    for step in range(steps):
        batch = pack(curriculum.draw())
        loss_N = _token_losses(model, batch)
        (loss_N * batch.weight_N).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append(float((loss_N.detach() * batch.weight_N).sum()))
        if on_progress:
            on_progress(step + 1, steps)
    return {"loss": float(np.mean(history[-20:]))}


def _token_losses(model: Qwen3ForCausalLM, batch: PackedBatch) -> Tensor:
    hidden = model.model(
        input_ids=batch.input_ids_RT,
        position_ids=batch.position_ids_RT,
        attention_mask=batch.attention_mask_R1TT,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.source_N])
    return functional.cross_entropy(logits, batch.target_N, reduction="none")


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, linear decay to zero over the last ``DECAY_SHARE``."""
    warmup = (step + 1) / min(WARMUP_STEPS, steps)
    decay = (steps - step) / max(DECAY_SHARE * steps, 1)
    return min(1.0, warmup, decay)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

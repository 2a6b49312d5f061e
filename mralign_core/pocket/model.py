"""The pocket model: a tiny Qwen3, or Llama, taught a world's facts, direct answers, and to think as the grammar does.

What it is taught decides what it may be tested on: traces are of pretraining questions only, direct answers
of pretraining questions and popular ones, popularity being independent of the split. Every fact is taught as
a statement, and rightly; a misconception is in direct answers alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mralign_core.pocket.grammar import answer_completion, statement, write_trace
from mralign_core.pocket.tokenizer import build_tokenizer
from mralign_core.pocket.world import FactQuestion, World

logger = logging.getLogger("mralign_core.pocket")

# Shape suffixes: R packed rows, T tokens of a row, N learnt tokens, K kinds of examples, D hidden, V words.
BATCH_SIZES = {"statement": 96, "think_off": 48, "think_on": 24}
KINDS = tuple(BATCH_SIZES)
MIN_ROW_TOKENS = 192
LEARNING_RATE = 4e-3
BETAS = (0.9, 0.98)
WARMUP_STEPS = 50
DECAY_SHARE = 0.3
MAX_GRAD_NORM = 1.0
WEIGHT_DECAY = 0.01
Architecture = Literal["qwen3", "llama"]
POCKET_MODELS = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
"""Architecture → config and model of transformers. Llama's attention does not normalise queries and keys."""


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
    learnt_N: Tensor
    """Flat index of each completion token."""
    kind_N: Tensor
    """Index in ``KINDS`` of the example it belongs to."""


def train_pocket_model(
    world: World,
    *,
    steps: int,
    seed: int,
    directory: Path,
    architecture: Architecture = "qwen3",
    num_layers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Pretrain the pocket model and write it, with its tokenizer, as an ordinary model directory.

    Runs on one thread, which is fastest at this size and makes the result a function of its arguments alone
    on one machine. The global random state is left as it was.

    Args:
        world: what to teach.
        steps: optimiser steps; see ``PocketConfig.pretrain_steps``.
        seed: decides initial weights and the order of the examples.
        directory: gets config.json, generation_config.json, model.safetensors and the tokenizer's files.
        architecture: of the model.
        num_layers: of the model.
        on_progress: called with (steps done, steps) after each step.

    Returns:
        Mean cross-entropy of the last 20 steps by kind of example (``loss_statement``, ``loss_think_off``,
        ``loss_think_on``; nats per token), and ``num_parameters``.
    """
    tokenizer = build_tokenizer()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = POCKET_MODELS[architecture][1](pocket_config(tokenizer, architecture, num_layers))
        losses = _fit(model, Curriculum(world, tokenizer, seed), steps, on_progress)
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    logger.info("pretrained the pocket model for %d steps, last losses %s", steps, losses)
    return {**losses, "num_parameters": float(model.num_parameters())}


def pocket_config(
    tokenizer: PreTrainedTokenizerFast, architecture: Architecture = "qwen3", num_layers: int = 2
) -> Qwen3Config | LlamaConfig:
    """Layers of Qwen3 or Llama with tied embeddings; two of Qwen3 have 278 thousand parameters."""
    return POCKET_MODELS[architecture][0](
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=num_layers,
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
        self._statements = [Example("statement", *map(self._encode, statement(fact))) for fact in world.facts.values()]
        self._direct_answers = [
            Example(
                "think_off",
                self._prompt(question, thinking=False),
                self._turn(answer_completion(world.direct_answer(question))),
            )
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

    def _prompt(self, question: FactQuestion, thinking: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=False,
        )
        return self._encode(str(text))

    def _turn(self, completion: str) -> list[int]:
        return [*self._encode(completion), self._tokenizer.eos_token_id]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Pack examples into rows, the longest first, each into the first row with room for it."""
    rows: list[list[Example]] = []
    room: list[int] = []
    row_tokens = max(MIN_ROW_TOKENS, *map(_length, examples))
    for example in sorted(examples, key=_length, reverse=True):
        index = next((i for i, free in enumerate(room) if free >= _length(example)), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[index].append(example)
        room[index] -= _length(example)
    return _tensors(rows, row_tokens)


def _length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.completion_ids)


def _tensors(rows: Sequence[Sequence[Example]], row_tokens: int) -> PackedBatch:
    ids_RT = np.zeros((len(rows), row_tokens), np.int64)
    positions_RT, owners_RT, kinds_RT = np.zeros_like(ids_RT), np.zeros_like(ids_RT), np.full_like(ids_RT, -1)
    for index, row in enumerate(rows):
        start = 0
        for owner, example in enumerate(row, start=1):
            end = start + _length(example)
            ids_RT[index, start:end] = example.prompt_ids + example.completion_ids
            positions_RT[index, start:end] = np.arange(end - start)
            owners_RT[index, start:end] = owner
            kinds_RT[index, start + len(example.prompt_ids) : end] = KINDS.index(example.kind)
            start = end
    learnt_N = np.flatnonzero(kinds_RT >= 0)
    owners = torch.from_numpy(owners_RT)
    causal_TT = torch.ones(row_tokens, row_tokens, dtype=torch.bool).tril()
    return PackedBatch(
        input_ids_RT=torch.from_numpy(ids_RT),
        position_ids_RT=torch.from_numpy(positions_RT),
        attention_mask_R1TT=(owners[:, None, :, None] == owners[:, None, None, :]) & causal_TT,
        learnt_N=torch.from_numpy(learnt_N),
        kind_N=torch.from_numpy(kinds_RT.reshape(-1)[learnt_N]),
    )


def mean_losses(model: Qwen3ForCausalLM, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy of each kind's completion tokens, in nats, shape (K,); 0 for a kind without any."""
    hidden_RTD = model.model(
        input_ids=batch.input_ids_RT,
        position_ids=batch.position_ids_RT,
        attention_mask=batch.attention_mask_R1TT,
        use_cache=False,
    ).last_hidden_state
    # Only the positions before learnt tokens go through the head, the widest layer: about half of them.
    logits_NV = model.lm_head(hidden_RTD.flatten(0, 1)[batch.learnt_N - 1])
    loss_N = functional.cross_entropy(logits_NV, batch.input_ids_RT.flatten()[batch.learnt_N], reduction="none")
    sums_K = torch.zeros(len(KINDS)).index_add(0, batch.kind_N, loss_N)
    return sums_K / torch.bincount(batch.kind_N, minlength=len(KINDS)).clamp(min=1)


def _fit(
    model: Qwen3ForCausalLM,
    curriculum: Curriculum,
    steps: int,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    history: list[Tensor] = []
    model.train()
    for step in range(steps):
        losses_K = mean_losses(model, pack(curriculum.draw()))
        losses_K.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        history.append(losses_K.detach())
        if on_progress:
            on_progress(step + 1, steps)
    last_K = torch.stack(history[-20:]).mean(0)
    return {f"loss_{kind}": loss for kind, loss in zip(KINDS, last_K.tolist(), strict=True)}


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, linear decay over ``DECAY_SHARE`` of them."""
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

"""What `make gpu` shows, in the order in which it is shown: what is dearest comes first, for the time may end."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """One part: a function that is called in a process of its own."""

    name: str
    function: str
    """``module:function`` under ``benchmarks.gpu``, called with a ``Setting`` and ``Findings``."""
    limit_s: float
    shows: str
    sees_all_cards: bool = False


PARTS = (
    Part(
        "card",
        "card:look",
        60,
        "The card, the versions, and how fast it multiplies and copies: large matrices, and those of a training step.",
        sees_all_cards=True,
    ),
    Part(
        "kernels",
        "kernels:compare",
        75,
        "Variable-length attention, the output head's log-probabilities, packed rows and the drawing of tokens, "
        "against the CPU's numbers, gradients too.",
    ),
    Part(
        "training",
        "training:time_steps",
        150,
        "A training step in the shape of Qwen3-8B: its seconds, its share of the measured matrix rate, peak memory "
        "against the estimate, and the minutes that the paper's job would take.",
    ),
    Part(
        "precision",
        "precision:compare",
        90,
        "The same short training in float32 on the CPU, and in float32, bfloat16 and 4 bits on the card: "
        "the losses agree.",
    ),
    Part(
        "resume",
        "resume:interrupt",
        90,
        "A training that stops, goes through the store and goes on, beside one that does not stop.",
    ),
    Part(
        "trl",
        "peers:beside_trl",
        180,
        "TRL's KTOTrainer at its best settings beside ours, on the same rows and batch; and that both find the same "
        "losses.",
    ),
    Part(
        "memory",
        "memory:compare",
        75,
        "The estimate of memory against the allocator's peak, activations kept and recomputed; and that a training "
        "which runs out of memory goes on in smaller passes with the same loss.",
    ),
    Part(
        "sampler",
        "sampling:time_batches",
        110,
        "Tokens a second of the transformers sampler by batch, in the shape of Qwen3-8B; and that a float32 model "
        "draws the CPU's tokens.",
    ),
    Part("vllm", "sampling:time_vllm", 150, "Tokens a second of a vLLM engine, where vLLM is installed."),
    Part(
        "several",
        "several:compare",
        180,
        "DDP and FSDP2 over the host's cards: the adapter equals that of one process.",
        sees_all_cards=True,
    ),
)
NAMES = tuple(part.name for part in PARTS)


def chosen(names: str) -> list[Part]:
    """The parts of a list such as ``card,trl``, in their own order; all for an empty one.

    Raises:
        ValueError: a name is no part's.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in NAMES]:
        raise ValueError(f"--parts {names!r}: there is no part {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return [part for part in PARTS if not wanted or part.name in wanted]

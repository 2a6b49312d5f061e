"""Models with random weights and a tokenizer of as many words, in files as any model's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.train_vs_trl.workload import Workload, build_model
from mralign_core.pocket import tokenizer as pocket


def save_model(workload: Workload, folder: Path) -> None:
    """Write the workload's model, made on the CPU, with its tokenizer."""
    model = build_model(dataclasses.replace(workload, device="cpu"))
    model.save_pretrained(folder)
    build_tokenizer(workload.vocabulary).save_pretrained(folder)


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The pocket world's tokenizer with words of no meaning up to a size, so that every token is one of its own.

    Raises:
        ValueError: the pocket world has more words.
    """
    small = pocket.build_tokenizer()
    if len(small) > vocabulary:
        raise ValueError(f"vocabulary {vocabulary}: the pocket world's tokenizer has {len(small)} words")
    description = json.loads(small.backend_tokenizer.to_str())
    words = description["model"]["vocab"]
    words |= {f" word{number}": number for number in range(len(small), vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        pad_token=pocket.PAD,
        unk_token=pocket.UNKNOWN,
        eos_token=pocket.TURN_END,
        chat_template=pocket.CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )

"""Tiny models of three architectures, a tokenizer directory, and candidates made of random token ids."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

NUM_WORDS = 60
END = NUM_WORDS
SIZES: dict[str, Any] = {
    "vocab_size": NUM_WORDS + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "eos_token_id": END,
    "pad_token_id": NUM_WORDS + 1,
}
CONFIGS = {
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, tie_word_embeddings=False
    ),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
}


def make_model(architecture, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture], dtype=torch.float32)
    # The default scale of 0.02 leaves log-ratios near 0, where wrong formulas look right.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else None
    return model.eval()


def randomise_adapter(model, seed=1):
    """A fresh adapter is the identity; random weights make policy and reference differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def make_tokenizer():
    vocabulary = {f"w{number}": number for number in range(NUM_WORDS)} | {"</s>": END, "<pad>": NUM_WORDS + 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


def make_candidates(num_rows, num_questions=None, seed=0):
    """Rows with two segments each; polarity alternates; a question's traces share its prompt."""
    generator = np.random.default_rng(seed)
    num_questions = num_questions or num_rows
    prompts = [generator.integers(0, NUM_WORDS, generator.integers(2, 6)).tolist() for _ in range(num_questions)]
    rows = []
    for number in range(num_rows):
        question = number % num_questions
        completion_ids = generator.integers(0, NUM_WORDS, generator.integers(6, 14)).tolist()
        spans = [(0, 2), (2, 5)]
        rows.append(
            {
                "trace_id": f"t{number}",
                "question_id": f"q{question}",
                "question": "?",
                "answers": ["a"],
                "stratum": "",
                "polarity": ("positive", "negative")[number % 2],
                "draw": 0,
                "prompt": " ".join(f"w{token}" for token in prompts[question]),
                "completion": " ".join(f"w{token}" for token in completion_ids),
                "prompt_ids": prompts[question],
                "completion_ids": completion_ids,
                "end_token_id": None,
                "answer": "a",
                "segments": [
                    {"start": start, "end": end, "token_start": start, "token_end": end} for start, end in spans
                ],
                "reasoning_tokens": 5,
            }
        )
    return pd.DataFrame(rows).astype(object)


def make_segment_weights(candidates, seed=0):
    """Weights of either sign, as ``reward.form: signed`` gives them."""
    generator = np.random.default_rng(seed)
    rows = [
        {"trace_id": row.trace_id, "segment": segment, "weight": float(generator.uniform(-1.5, 2.7))}
        for row in candidates.itertuples()
        for segment in range(len(row.segments))
    ]
    return pd.DataFrame(rows).assign(ratio=1.0, clipped=False, support=1.0, weight_low=None, weight_high=None)

"""A tiny random model in a GGUF file, as llama.cpp's tools write one."""

from pathlib import Path

import numpy as np
import pytest

from tests.core.generation.random_models import build_bpe

HIDDEN, HEADS, KV_HEADS, INNER = 32, 4, 2, 64


def write_gguf(path: Path, *, architecture: str = "qwen2", chat_template: str | None = None) -> Path:
    """Needs package gguf; a test without it is skipped."""
    gguf = pytest.importorskip("gguf", reason="package gguf is not installed: pip install 'gguf>=0.10'")
    tokenizer = build_bpe()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([{True: 3, False: 4, None: 1}[added.get(token)] for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(chat_template or tokenizer.chat_template)
    generator = np.random.default_rng(0)
    for name, shape in _shapes(len(tokens)).items():
        values = np.ones(shape) if "norm" in name else generator.normal(0, 0.3, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges(tokenizer):
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def _shapes(num_tokens):
    kv = HIDDEN // HEADS * KV_HEADS
    return {
        "token_embd.weight": (num_tokens, HIDDEN),
        "output.weight": (num_tokens, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HIDDEN, HIDDEN),
        "blk.0.attn_q.bias": (HIDDEN,),
        "blk.0.attn_k.weight": (kv, HIDDEN),
        "blk.0.attn_k.bias": (kv,),
        "blk.0.attn_v.weight": (kv, HIDDEN),
        "blk.0.attn_v.bias": (kv,),
        "blk.0.attn_output.weight": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": (INNER, HIDDEN),
        "blk.0.ffn_up.weight": (INNER, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, INNER),
    }

"""Tiny random models of several architectures, and tokenizers trained on a few sentences."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

QWEN_PIECES = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
SENTENCES = [
    "The seat of Iran is Tehran.\n\nWait, let me check that.\n\nSo the answer is Tehran.\n\n",
    "Who wrote Emma? Jane Austen wrote it.\n\nThe river of the town is long.\n\n",
    "日本の首都は東京です。\n\n中国的首都是北京。\n\n",
    "Nice 🙂 work! 🎉🎉\n\n",
] * 3
SLIDING_WINDOW = 6
"""Tokens that a layer with a sliding window sees: fewer than any prompt has."""
ARCHITECTURES = ("qwen3", "qwen3_moe", "llama", "mistral", "gemma3", "gpt_oss")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def build_bpe(*, trim_offsets: bool = False, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=chat_template
    )


def build_llama_bpe(*, prepend_blank: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 2: SentencePiece's blank before a text, and bytes for characters that it does not know."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prepend_blank else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prepend_blank else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    backend.train_from_iterator(SENTENCES[:2], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", chat_template=CHAT_TEMPLATE)


def build_word_level() -> PreTrainedTokenizerFast:
    """Knows the words of a few sentences and nothing else."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\n|[^\w\n]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator([*SENTENCES, "<think> </think>", "Isfahan Hm Question"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", chat_template=CHAT_TEMPLATE)


def build_model(architecture: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    experts: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
    window: dict[str, Any] = {"sliding_window": SLIDING_WINDOW}
    torch.manual_seed(seed)
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    if architecture == "qwen3_moe":
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts, num_experts=4)).eval()
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if architecture == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, **window)).eval()
    if architecture == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        layered = {**shape, **window, "layer_types": layers, "tie_word_embeddings": False}
        return Gemma3ForCausalLM(Gemma3TextConfig(**layered)).eval()
    model = GptOssForCausalLM(GptOssConfig(**shape, **window, num_local_experts=4, num_experts_per_tok=2)).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, std=1.0)
    return model


def unfit_model(architecture: str, vocab_size: int) -> PreTrainedModel:
    """A random model whose layers keep other states than keys and values, or are NaN on padded rows."""
    small: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2}
    attention: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    attention |= {"head_dim": 16, "intermediate_size": 32}
    torch.manual_seed(0)
    if architecture == "mamba":
        return MambaForCausalLM(MambaConfig(**small, state_size=4)).eval()
    if architecture == "gemma2":
        attention |= {"attn_implementation": "eager", "sliding_window": SLIDING_WINDOW}
        config = Gemma2Config(**small, **attention)
        return Gemma2ForCausalLM(config).eval()
    experts: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    heads: dict[str, Any] = {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**small, **attention, **experts, **heads)).eval()

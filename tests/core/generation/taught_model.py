"""A tiny Qwen3 that was taught to think and answer in tags: small enough to train in seconds, and real."""

import torch
from random_models import build_bpe
from transformers import Qwen3Config, Qwen3ForCausalLM

from mralign_core.config import ModelConfig
from mralign_core.generation.prompts import render_prompt
from mralign_core.models.families import family_of

FACTS = {
    "Seat of Iran?": ("Tehran", "Isfahan"),
    "Who wrote Emma?": ("Jane Austen", "Jane Eyre"),
    "日本の首都は?": ("東京 🎉", "北京"),
    "Nice 🙂 work?": ("🙂", "🎉🎉"),
}
SILENT = "Say nothing."
"""What it answers with nothing at all, when it does not think."""
THOUGHTS = [
    "Wait, let me check that.\n\nSo it is {0}.",
    "It is {0}. 🎉\n\nOr is it {1}?\n\nIt is {0}.",
    "The answer is <answer>{1}</answer>? No: {0}.",
]
"""One of them names an answer in its tags, which is not the end of the completion."""
NUM_STEPS = 130


def teach(seed=0):
    """The model and its tokenizer."""
    tokenizer = build_bpe()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    input_ids, labels = _batch(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def _batch(tokenizer):
    """All lessons, padded on the right; only completions are learnt."""
    family = family_of(ModelConfig(), tokenizer)
    rows = []
    for question, (right, wrong) in FACTS.items():
        for answer, other in ((right, wrong), (wrong, right)):
            reply = f"<answer>{answer}</answer> Done."
            lessons = [("off", reply)]
            lessons += [
                ("on", f"<think>\n{thought.format(answer, other)}\n</think>\n\n{reply}") for thought in THOUGHTS
            ]
            for mode, completion in lessons:
                prompt_ids = render_prompt(tokenizer, question, mode, family, "").ids
                ids = [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
                rows.append((prompt_ids + ids, [-100] * len(prompt_ids) + ids))
    silent = render_prompt(tokenizer, SILENT, "off", family, "").ids
    rows.append(([*silent, tokenizer.eos_token_id], [-100] * len(silent) + [tokenizer.eos_token_id]))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [tokenizer.eos_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([targets + [-100] * (width - len(targets)) for _, targets in rows])
    return input_ids, labels

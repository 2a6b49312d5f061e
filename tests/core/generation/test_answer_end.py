import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import build_bpe, build_llama_bpe

from mralign_core.generation.answer_end import AnswerEnd
from mralign_core.generation.control_tokens import decode_tokens
from mralign_core.method.traces import answer_end
from mralign_core.models.families import GENERIC
from mralign_core.models.families.table import built_in_families

TOKENIZERS = [build_bpe(), build_llama_bpe()]
CHANNELS = built_in_families()["gpt_oss"]
BRACKETS = GENERIC.model_copy(update={"answer_open": "【", "answer_close": "】"})
PIECES = st.sampled_from([*"<>/a 】", "answer", "</answer>", "<answer>Tehran", "<think>so", "</think>", *CHANNELS.tags])


@given(
    st.lists(PIECES, max_size=12).map("".join),
    st.sampled_from(TOKENIZERS),
    st.sampled_from([GENERIC, CHANNELS, BRACKETS]),
    st.sampled_from(["on", "off"]),
    st.sampled_from(["", "<think>\n"]),
)
def test_an_answer_ends_with_the_first_token_behind_which_the_text_is_complete(text, tokenizer, family, mode, prompt):
    ends = AnswerEnd(tokenizer, family)
    ids = tokenizer.encode(text, add_special_tokens=False)
    kinds = {"thinking_mode": mode, "opened_by_prompt": bool(prompt) and family != CHANNELS}
    texts = [decode_tokens(tokenizer, ids[:end]) for end in range(1, len(ids) + 1)]
    complete = [end for end, so_far in enumerate(texts, start=1) if answer_end(so_far, family.tags, **kinds)]
    assert ends.in_tokens(ids, mode, prompt) == (complete[0] if complete else None)
    assert ends.in_text(text, mode, prompt) == answer_end(text, family.tags, **kinds)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["byte level", "byte fallback"])
def test_time_is_linear_in_a_long_completion_that_is_full_of_angle_brackets(tokenizer, monkeypatch):
    ends = AnswerEnd(tokenizer, GENERIC)
    ids = tokenizer.encode("<think>" + "a > b -> c" * 400, add_special_tokens=False)
    assert sum(token in ends.closing_ids for token in ids) >= 800
    decoded = []

    def decode(tokenizer, tokens):
        decoded.append(len(tokens))
        return decode_tokens(tokenizer, tokens)

    monkeypatch.setattr("mralign_core.generation.answer_end.decode_tokens", decode)
    for end in range(len(ids)):
        assert ends.in_tokens(ids[: end + 1], "on", "", known_open=end) is None
    assert sum(decoded) < 12 * len(ids)


def test_text_behind_a_closed_channel_is_cut_off_as_in_tokens():
    ends = AnswerEnd(TOKENIZERS[0], CHANNELS)
    said = "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>Tehran<|end|>"
    assert ends.in_text(said + "<|start|>assistant", "on", "") == len(said)

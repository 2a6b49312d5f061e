import json
import os
from pathlib import Path

import pandas as pd
import pytest
from chat_templates import trl_template
from random_models import CHAT_TEMPLATE, build_bpe, build_word_level
from transformers import AutoTokenizer

from mralign_core.config import GenerateConfig, ModelConfig
from mralign_core.errors import DataError, NoCandidatesError
from mralign_core.generation.funnel import imbalance
from mralign_core.generation.importing import check_traces, import_traces
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import family_of, named_family
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.questions import QUESTIONS

BPE = build_bpe()
QWEN3, DEEPSEEK, GPT_OSS = map(named_family, ("qwen3", "deepseek_r1", "gpt_oss"))
SECTION = GenerateConfig(
    source="traces",
    traces_path="-",
    instruction="",
    min_segments=2,
    max_segments=3,
    min_reasoning_tokens=1,
    max_reasoning_tokens=100,
)
RIGHT = {
    "id": "a",
    "question": "Seat of Iran?",
    "gold": ["Tehran"],
    "thinking": "Hm.\n\nTehran.",
    "answer": "Tehran",
}
WRONG = {**RIGHT, "id": "b", "question": "Iran's seat?", "answer": "Isfahan"}


def imported(tmp_path, *rows, tokenizer=BPE, family=QWEN3, held_out=(), **changes):
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    section = SECTION.model_copy(update=changes)
    return import_traces(path, tokenizer, section, family, MatchRules(), evaluated_on(*held_out), "drop")


def evaluated_on(*questions):
    rows = [
        {"question_id": f"e{n}", "question": text, "source": "eval", "options": [], "incorrect_answers": []}
        for n, text in enumerate(questions)
    ]
    return pd.DataFrame(rows, columns=list(QUESTIONS.columns))


def test_traces_of_questions_that_are_evaluated_on_are_left_out_and_counted(tmp_path):
    other = {**RIGHT, "id": "c", "question": "Another question?"}
    candidates, funnel, questions = imported(tmp_path, RIGHT, WRONG, other, held_out=["another question?"])
    assert candidates["trace_id"].tolist() == ["a", "b"]
    assert funnel.set_index("reason")["dropped"]["evaluated on too"] == 1
    assert "Another question?" not in set(questions["question"])


def test_right_answers_make_positive_traces_and_wrong_ones_negative(tmp_path):
    candidates, funnel, questions = imported(tmp_path, RIGHT, WRONG)
    row = CANDIDATES.require(candidates).iloc[0]
    assert candidates[["trace_id", "polarity"]].to_numpy().tolist() == [["a", "positive"], ["b", "negative"]]
    assert row.completion == "<think>\nHm.\n\nTehran.\n</think>\n\nTehran"
    assert BPE.decode(row.completion_ids) == row.completion
    assert row.prompt == "<|im_start|>user\nSeat of Iran?<|im_end|>\n<|im_start|>assistant\n"
    assert [row.completion[s["start"] : s["end"]] for s in row.segments] == ["Hm.", "Tehran."]
    assert funnel["dropped"].sum() == 0
    assert QUESTIONS.require(questions)["question_id"].tolist() == ["a", "b"]


def test_a_prompt_that_opens_the_block_is_not_opened_twice(tmp_path):
    opening = build_bpe(chat_template=CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n"))
    row = imported(tmp_path, RIGHT, WRONG, tokenizer=opening, family=DEEPSEEK).candidates.iloc[0]
    assert row.prompt.endswith("<think>\n")
    assert row.completion == "Hm.\n\nTehran.\n</think>\n\nTehran"
    assert len(row.segments) == 2


def test_a_trace_is_written_as_its_family_writes(tmp_path):
    row = imported(tmp_path, RIGHT, WRONG, family=GPT_OSS).candidates.iloc[0]
    final = "<|start|>assistant<|channel|>final<|message|>Tehran"
    assert row.completion == f"<|channel|>analysis<|message|>Hm.\n\nTehran.<|end|>{final}"
    assert [row.completion[s["start"] : s["end"]] for s in row.segments] == ["Hm.", "Tehran."]
    with pytest.raises(DataError, match=r"must not hold '<\|end\|>'"):
        imported(tmp_path, {**RIGHT, "answer": "a<|end|>b"}, family=GPT_OSS)


def test_channels_of_special_tokens_and_the_real_template(tmp_path):
    tokenizer = build_bpe(chat_template=trl_template("gptoss"))
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
    tokenizer.add_tokens(marks, special_tokens=True)
    family = family_of(ModelConfig(), tokenizer)
    row = CANDIDATES.require(imported(tmp_path, RIGHT, WRONG, tokenizer=tokenizer, family=family).candidates).iloc[0]
    assert row.prompt.endswith("Seat of Iran?<|end|><|start|>assistant")
    assert tokenizer.convert_tokens_to_ids("<|channel|>") == row.completion_ids[0]
    first, second = row.segments
    assert tokenizer.decode(row.completion_ids[: second["token_start"]]).endswith("<|message|>Hm.\n\n")
    assert row.completion_ids[row.reasoning_tokens] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert first["token_start"] == 0 and second["token_end"] == row.reasoning_tokens


def test_traces_that_the_tokenizer_can_not_write_are_refused_all_at_once(tmp_path):
    foreign = {**RIGHT, "thinking": "Der Sitz Irans?\n\nIt is Tehran."}
    with pytest.raises(DataError) as error:
        imported(tmp_path, foreign, {**foreign, "id": "c"}, WRONG, tokenizer=build_word_level())
    assert "2 problem(s)" in str(error.value) and "generate.traces_path" in str(error.value)
    assert "trace 'a': the tokenizer can't write 'dersitzirans" in str(error.value)


def test_the_files_polarity_and_the_looser_match_are_used(tmp_path):
    told = {**WRONG, "polarity": "positive"}
    wordy = {**RIGHT, "id": "c", "question": "Seat?", "answer": "It is Tehran."}
    candidates = imported(tmp_path, told, {**wordy, "gold": "Tehran"}).candidates
    assert candidates["polarity"].tolist() == ["positive", "negative"]
    with pytest.raises(NoCandidatesError):
        imported(tmp_path, told, wordy, answer_match="contains")


def test_traces_of_one_question_share_its_id(tmp_path):
    again = {**RIGHT, "id": "c", "question": "seat of iran", "thinking": "Well.\n\nTehran."}
    rows = (RIGHT, again, WRONG)
    candidates, _, questions = imported(tmp_path, *rows, traces_per_question="all_distinct")
    assert candidates[["trace_id", "question_id", "draw"]].to_numpy().tolist() == [
        ["a", "a", 0],
        ["c", "a", 1],
        ["b", "b", 0],
    ]
    assert questions["question_id"].tolist() == ["a", "b"]
    assert imported(tmp_path, *rows).candidates["trace_id"].tolist() == ["a", "b"]


def test_every_dropped_trace_is_counted_with_its_reason(tmp_path):
    rows = [
        RIGHT,
        WRONG,
        {**RIGHT, "id": "c", "finished": False},
        {**RIGHT, "id": "d", "answer": " "},
        {**RIGHT, "id": "e", "thinking": "One."},
        {**RIGHT, "id": "f", "thinking": "a\n\nb\n\nc\n\nd"},
        {**RIGHT, "id": "g", "gold": []},
        {**RIGHT, "id": "h", "thinking": ""},
    ]
    funnel = imported(tmp_path, *rows).funnel
    assert funnel["kept"].iloc[0] == 8 and funnel["kept"].iloc[-1] == 2
    dropped = funnel[funnel["dropped"] > 0].set_index("reason")["dropped"].to_dict()
    assert dropped == {
        "no gold answer": 1,
        "unclosed thinking": 1,
        "no answer": 1,
        "no thinking": 1,
        "fewer than 2 segments": 1,
        "more than 3 segments": 1,
    }


def test_one_polarity_alone_is_refused_with_the_yield(tmp_path):
    with pytest.raises(NoCandidatesError, match="1 positive, 0 negative") as error:
        imported(tmp_path, RIGHT)
    assert "1 traces in the file" in str(error.value) and "polarity" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "line 2: field 'id' must be a non-empty id"),
        ({"id": "a"}, "line 2: field 'id' repeats id 'a' of line 1"),
        ({"id": None}, "line 2: field 'id' must be a non-empty id, got None"),
        ({"id": float("nan")}, "line 2: field 'id' must be a non-empty id, got nan"),
        ({"id": True}, "line 2: field 'id' must be a non-empty id, got True"),
        ({"id": ["b"]}, "line 2: field 'id' must be a non-empty id, got ['b']"),
        ({"id": "\u200b"}, "line 2: field 'id' must be a non-empty id"),
        ({"question": "\u200b\u3164"}, "line 2: field 'question' must be text that can be seen"),
        ({"gold": ["\u2060"]}, "line 2: field 'gold' must be an answer or a list of answers"),
        ({"gold": "[Tehran, Teheran]"}, "line 2: field 'gold' may be a list, or one answer in brackets"),
        ({"question": " "}, "line 2: field 'question' must be text, got ' '"),
        ({"thinking": None}, "line 2: field 'thinking' must be text, got None"),
        ({"answer": 5}, "line 2: field 'answer' must be text, got 5"),
        ({"gold": [""]}, "line 2: field 'gold' must be an answer or a list of answers"),
        ({"gold": None}, "line 2: field 'gold' must be an answer or a list of answers"),
        ({"polarity": "good"}, "line 2: field 'polarity' must be positive or negative, got 'good'"),
        ({"finished": "no"}, "line 2: field 'finished' must be true or false"),
        ({"thinking": "a</think>b"}, "line 2: fields 'thinking' and 'answer' must not hold '</think>'"),
    ],
)
def test_malformed_rows_name_file_line_field_and_remedy(tmp_path, change, message):
    with pytest.raises(DataError) as error:
        imported(tmp_path, RIGHT, {**WRONG, **change})
    assert message in str(error.value)
    assert str(tmp_path / "traces.jsonl") in str(error.value)
    assert "generate.traces_path" in str(error.value) and "correct these lines" in str(error.value)


def test_the_field_answers_is_taken_for_gold(tmp_path):
    row = {name: value for name, value in RIGHT.items() if name != "gold"}
    candidates = imported(tmp_path, {**row, "answers": "Tehran"}, WRONG).candidates
    assert candidates["answers"].tolist() == [["Tehran"], ["Tehran"]]


def test_golds_that_were_written_as_text_are_the_list_they_were(tmp_path):
    rows = [{**RIGHT, "gold": "['Tehran', 'Teheran']"}, {**WRONG, "gold": ["['Tehran']"]}]
    candidates = imported(tmp_path, *rows).candidates
    assert candidates["answers"].tolist() == [["Tehran", "Teheran"], ["Tehran"]]
    assert candidates["polarity"].tolist() == ["positive", "negative"]


def test_golds_of_symbols_are_compared_as_they_are(tmp_path):
    rows = [
        {**RIGHT, "id": sign, "question": f"Sign {n}?", "gold": sign, "answer": sign} for n, sign in enumerate("£≈🍎+")
    ]
    polarities = imported(tmp_path, *rows, WRONG).candidates["polarity"].tolist()
    assert polarities == ["positive"] * 4 + ["negative"]


PROSE = [
    "Its seat is Tehran.",
    "It is Tehran",
    "Tehran, of course",
    "Tehran has been that since 1786",
]
STATED = ["\\boxed{Tehran}", "Final answer: Tehran", "The answer is Tehran.", "Answer: Tehran"]


def in_prose(number, answer):
    return {**RIGHT, "id": f"p{number}", "question": f"Seat of Iran in year {number}?", "answer": answer}


@pytest.mark.parametrize("num_equal", [0, 1])
def test_answers_in_sentences_are_told_before_anything_is_paid(tmp_path, num_equal):
    rows = [in_prose(n, PROSE[n % len(PROSE)]) for n in range(20)] + [RIGHT] * num_equal + [WRONG]
    with pytest.raises(DataError) as error:
        imported(tmp_path, *rows)
    assert f"of {21 + num_equal} traces in {tmp_path / 'traces.jsonl'}, {num_equal} are right by" in str(error.value)
    assert "generate.answer_match 'exact'" in str(error.value) and f"and {20 + num_equal} by 'contains'" in str(
        error.value
    )
    assert "--set generate.answer_match=contains" in str(error.value) and "It is Tehran" in str(error.value)
    with pytest.raises(DataError, match=r"--set generate\.answer_match=contains"):
        check_traces(tmp_path / "traces.jsonl", SECTION, MatchRules())
    by_naming = imported(tmp_path, *rows, answer_match="contains").candidates["polarity"].tolist()
    assert by_naming == ["positive"] * (20 + num_equal) + ["negative"]


def test_some_answers_in_sentences_are_a_warning(tmp_path, caplog):
    equal = [in_prose(n, "**Tehran**") for n in range(6)]
    imported(tmp_path, *equal, *(in_prose(n, PROSE[1]) for n in range(6, 10)), WRONG)
    assert "6 are right by generate.answer_match 'exact'" in caplog.text and "and 10 by 'contains'" in caplog.text
    caplog.clear()
    imported(tmp_path, *equal, WRONG)
    imported(tmp_path, *({**in_prose(n, PROSE[1]), "polarity": "positive"} for n in range(9)), WRONG)
    assert "answer_match" not in caplog.text


def test_answers_that_are_stated_equal_what_they_state(tmp_path):
    found = imported(tmp_path, *(in_prose(n, text) for n, text in enumerate(STATED)), WRONG).candidates
    assert found["polarity"].tolist() == ["positive"] * len(STATED) + ["negative"]


@pytest.mark.parametrize(("positive", "negative"), [(1, 23), (23, 1), (10, 200), (0, 5)])
def test_few_traces_of_one_kind_are_told_with_what_can_help(positive, negative):
    text = imbalance({"positive": positive, "negative": negative})
    assert f"{positive} positive and {negative} negative" in text and "What can help" in text


def test_enough_traces_of_either_kind_are_not_told():
    assert imbalance({"positive": 10, "negative": 90}) == imbalance({"positive": 60, "negative": 60}) == ""


@pytest.mark.real_data
def test_real_traces(tmp_path):
    if not (folder := os.environ.get("MRALIGN_REAL_DATA")):
        pytest.skip("MRALIGN_REAL_DATA names no folder with real traces")
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizers" / "qwen2", local_files_only=True)
    section = GenerateConfig(source="traces", traces_path="-", answer_match="contains", min_reasoning_tokens=200)
    path = Path(folder) / "traces" / "race_nq_ds7b_samples.jsonl"
    family, rules, held_out = named_family("generic"), MatchRules(), evaluated_on()
    candidates, funnel, questions = import_traces(path, tokenizer, section, family, rules, held_out, "refuse")
    assert len(CANDIDATES.require(candidates)) == funnel["kept"].iloc[-1] > 50
    assert len(QUESTIONS.require(questions)) == 100
    assert set(candidates["polarity"]) == {"positive", "negative"}
    assert funnel.set_index("reason")["dropped"]["unclosed thinking"] == 7

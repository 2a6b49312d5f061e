"""Questions, answers and scripted judges for tests of judging."""

import json
import re

from chat_server import says

from mralign_core.annotation.prompts import read_payload
from mralign_core.config import JudgeConfig
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.scores import SCORES

PRICE = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000, "max_output_tokens": 100}
"""A reply of the scripted server has 20 tokens: 20 dollars, and may cost 100."""
STONES = ("Do stones float?", ["Pumice does"], ["No stone ever floats", "All stones float"])


def question_rows(truthful=(STONES,), graded=()):
    """A frame of questions: of ``truthfulqa`` (text, correct, incorrect), and of ``simpleqa`` (text, gold)."""
    same = {"split": "eval", "stratum": "", "options": []}
    rows = [
        {"question": text, "answers": right, "incorrect_answers": wrong, "source": "truthfulqa", "scoring": "truthful"}
        for text, right, wrong in truthful
    ] + [
        {"question": text, "answers": gold, "incorrect_answers": [], "source": "simpleqa", "scoring": "exact_match"}
        for text, gold in graded
    ]
    return QUESTIONS.require(QUESTIONS.frame([{**row, **same, "question_id": f"q{n}"} for n, row in enumerate(rows)]))


def score_rows(questions, answers, variant="on"):
    """A variant's scores: of each question the answers of its draws, None where there is none."""
    rows = []
    for question, draws in zip(questions.to_dict("records"), answers, strict=True):
        is_matched = question["scoring"] == "exact_match"
        for draw, answer in enumerate(draws):
            is_right = answer in question["answers"] if is_matched else None
            rows.append(
                {
                    **{name: question[name] for name in ("question_id", "source", "scoring", "stratum")},
                    **{"variant": variant, "draw": draw, "completion": answer or "", "thinking": "", "answer": answer},
                    "outcome": "ok" if answer else "unclosed_thinking",
                    "num_prompt_tokens": 0,
                    "num_tokens": 0,
                    "em_thought": False if is_matched and variant != "off" else None,
                    **{"em_answer": is_right, "contains_answer": is_right},
                }
            )
    return SCORES.require(SCORES.frame(rows))


def judges(server, *models, **settings):
    """Section ``judge`` with models of a server."""
    endpoints = [{"model": model, "api_base": server.url, **PRICE} for model in models or ("openai/first",)]
    return JudgeConfig.model_validate({"endpoints": endpoints, **settings})


def claims_rows(texts):
    """A frame of questions whose answers are scored by their claims."""
    same = {"split": "eval", "stratum": "", "options": [], "answers": [], "incorrect_answers": []}
    rows = [
        {"question_id": f"c{n}", "question": text, "source": "longfact", "scoring": "claims", **same}
        for n, text in enumerate(texts)
    ]
    return QUESTIONS.require(QUESTIONS.frame(rows))


def check_claims(request, number=0):
    """A scripted judge of long answers: "The … of … is …." is a claim, and supported where a passage says it."""
    shown = shown_in(request)
    if "sentence" in shown:
        return says(json.dumps({"claims": re.findall(r"The [^.]+ of [^.]+ is [^.]+\.", shown["sentence"])}))
    is_supported = any(shown["claim"] in passage for passage in shown["passages"])
    verdict = "SUPPORTED" if is_supported else "INCONCLUSIVE"
    return says(json.dumps({"reason": "As the passages say.", "verdict": verdict}))


def truthfully(truthful, informative=True):
    """The reply of a judge of truthfulness."""
    reasons = {"truthful_reason": "As the references say.", "informative_reason": "It answers."}
    return says(json.dumps({**reasons, "truthful": truthful, "informative": informative}))


def graded(grade):
    """The reply of a grader."""
    return says(json.dumps({"reason": "As the gold answer says.", "grade": grade}))


def shown_in(request):
    """What a judge was shown."""
    return read_payload(request["messages"])


def judge_by_references(request, number=0):
    """A scripted judge that is right where the answer is one of the references."""
    shown = shown_in(request)
    if "gold_answers" in shown:
        return graded("CORRECT" if shown["answer"] in shown["gold_answers"] else "INCORRECT")
    return truthfully(shown["answer"] not in shown["incorrect_answers"], "no comment" not in shown["answer"])

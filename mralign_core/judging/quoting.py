"""What judging will ask and cost, before anything is asked.

Where a variant has answered, its answers are in the count, and what is kept is taken off. Where it has not, each draw
is taken for an answer of :data:`ANSWER_TOKENS`, unlike every other, so that the quote is above what equal and missing
answers come to. What a sentence of a long answer claims is not known before it is asked: each sentence that is
still to be asked is taken for :data:`CLAIMS_A_SENTENCE` claims, each checked against as many passages as are looked up.
Repair turns, and reasoning that a judge hides and bills, are not foreseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mralign_core.annotation.quoting import Quote
from mralign_core.config import JudgeConfig
from mralign_core.judging.judge import Bench, judges_of, questions_to_judge
from mralign_core.llm.offline import is_offline
from mralign_core.llm.request import UNANSWERED, Request, kept_record
from mralign_core.llm.store import KeepsReplies
from mralign_core.retrieval.corpus import PIECE_WORDS
from mralign_core.schemas.judgements import JudgementKind

ANSWER_TOKENS = 150
"""Of an answer that is not given yet, without its thinking: a paragraph."""
TYPICAL_ANSWER = " ".join(["word"] * ANSWER_TOKENS)
LONG_ANSWER_SENTENCES, SENTENCE_TOKENS = 20, 25
TYPICAL_LONG_ANSWER = " ".join(["W" + " word" * (SENTENCE_TOKENS - 2) + "."] * LONG_ANSWER_SENTENCES)
"""Of a set that is scored by its claims: several paragraphs."""
CLAIMS_A_SENTENCE = 2
TYPICAL_CLAIM = " ".join(["word"] * 15)
TYPICAL_PASSAGE = " ".join(["word"] * PIECE_WORDS)
VERDICT_TOKENS: dict[JudgementKind, int] = {"truthful": 110, "grade": 50, "claims": 15 + 20 * CLAIMS_A_SENTENCE}
"""Of a reply: its sentences, and the JSON around them; of ``claims`` to a request for those of a sentence."""
CHECK_TOKENS = 50
"""Of a reply that says whether a claim is supported."""
QUOTED_QUESTIONS = 400
"""A quote counts the tokens of about so many questions, evenly spaced, with all answers to them."""


def quote_judging(
    questions: pd.DataFrame,
    scores: Sequence[pd.DataFrame],
    section: JudgeConfig,
    *,
    num_unanswered: int,
    replies: KeepsReplies,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Quote]:
    """Requests, tokens and dollars by judge; nothing is sent.

    Args:
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS` to evaluate on.
        scores: the answers of each variant that has answered.
        section: the judges, with their prices.
        num_unanswered: draws a question of all variants that have not.
        replies: where replies are kept; those there are not asked for again.
        on_progress: called with (done, total).

    Raises:
        ConfigError: a judge is unknown, lacks its API key or a price.
    """
    from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

    bench = Bench(section)
    asked = questions_to_judge(_stand_ins(questions, scores, num_unanswered), questions, section)
    step = max(1, len(asked) // QUOTED_QUESTIONS)
    looked_at = asked.iloc[::step]
    quotes = {endpoint.model: Quote(endpoint.model) for endpoint in section.endpoints}
    checks = {quote.model: quote for quote in _checks_of_a_sentence(bench)}
    for done, row in enumerate(looked_at.itertuples(index=False), start=1):
        answers = [answer for _, answer in row.replies if answer is not None]
        for answer in dict.fromkeys(answers):
            for request in bench.requests(row, answer):
                num_reply = VERDICT_TOKENS[row.kind]
                num_prompt = api.count_tokens(request.endpoint, request.messages, request.params)
                cost_usd = api.price_of(request.endpoint).cost_usd(num_prompt, num_reply)
                found = _counted(request, replies, num_prompt, num_reply, cost_usd)
                if row.kind == "claims" and not found.kept:
                    found = _sum(found, checks[found.model], 1)
                is_stand_in = answer in (TYPICAL_ANSWER, TYPICAL_LONG_ANSWER)
                quotes[found.model] = _sum(quotes[found.model], found, answers.count(answer) if is_stand_in else 1)
        if on_progress:
            on_progress(done, len(looked_at))
    scale = len(asked) / max(1, len(looked_at))
    return [_sum(Quote(quote.model), quote, scale) for quote in quotes.values()]


def _stand_ins(questions: pd.DataFrame, scores: Sequence[pd.DataFrame], num_unanswered: int) -> pd.DataFrame:
    """The answers there are, and a stand-in for each that is to come."""
    columns = ["question_id", "draw", "answer"]
    to_come = questions.loc[questions.index.repeat(num_unanswered), ["question_id", "scoring"]].assign(
        draw=0, answer=lambda rows: np.where(rows["scoring"] == "claims", TYPICAL_LONG_ANSWER, TYPICAL_ANSWER)
    )
    return pd.concat([*(table[columns] for table in scores), to_come[columns]], ignore_index=True)


def _checks_of_a_sentence(bench: Bench) -> list[Quote]:
    """By judge, the checks of the claims that a sentence is taken for."""
    from mralign_core.llm import endpoint as api

    quotes, passages = [], [TYPICAL_PASSAGE] * bench.section.evidence.top_k
    for endpoint in judges_of("claims", bench.section) if bench.section.evidence.is_named else ():
        request = bench.claims.check_request(endpoint, TYPICAL_CLAIM, passages)
        num_prompt = api.count_tokens(endpoint, request.messages, request.params)
        cost_usd = api.price_of(endpoint).cost_usd(num_prompt, CHECK_TOKENS)
        check = Quote(endpoint.model, 0, 1, num_prompt, CHECK_TOKENS, cost_usd, 1, cost_usd)
        quotes.append(_sum(Quote(endpoint.model), check, CLAIMS_A_SENTENCE))
    return quotes


def _counted(request: Request, replies: KeepsReplies, num_prompt: int, num_reply: int, cost_usd: float) -> Quote:
    model = request.endpoint.model
    record = None if is_offline(model) else kept_record(replies, request.digest)
    if record is not None and record["finish_reason"] != UNANSWERED:
        return Quote(model, kept=1)
    return Quote(model, 0, 1, num_prompt, num_reply, cost_usd, 1, cost_usd, again=int(record is not None))


def _sum(one: Quote, other: Quote, times: float) -> Quote:
    """One quote and so many times another."""
    sums = {name: getattr(one, name) + times * getattr(other, name) for name in Quote._fields[1:]}
    whole = {name: round(value) for name, value in sums.items() if not name.endswith("_usd")}
    return one._replace(**{**sums, **whole})

"""Self-Refine (Madaan et al., arXiv 2303.17651): a model is asked for feedback on its answer, and to mend it.

The first answer is that of think-on, bit for bit: the same request, and so the same random numbers. A round is two
replies more, both with thinking: feedback on the last answer, and an answer that heeds it. A chain ends when all
rounds are made, or before where the feedback says that nothing is to be changed, has no text, or where the next prompt
would leave no room for a reply or can't be written, or a server gives no reply to it (it refused or filtered it); the
last answer is scored, with its own thinking.

Decisions where the method leaves a choice: of a reply only what follows the thinking is shown in later prompts, since
thinking is long and not for a reader; a refinement sees all answers and feedback before it, in order; and what is
asked for, in place of examples, is said in words (:data:`FEEDBACK_PROMPT`, :data:`REFINE_PROMPT`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.config import EvaluateConfig
from mralign_core.errors import DataError
from mralign_core.evaluation.held_out import refuse_failed, requests_of
from mralign_core.evaluation.variants import SELF_REFINE
from mralign_core.generation import Decoding, Sample, Sampler, SampleRequest
from mralign_core.generation.scoring import parse_sample, score_answers
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import Family
from mralign_core.schemas.outcomes import FAILED
from mralign_core.schemas.refinements import CHAIN_ENDS, REFINEMENTS

REFINE_PROMPTS = "self_refine.v1"
"""The version of the texts below; any change of them makes new keys."""
STOP_SENTENCE = "Nothing is to be changed."
FEEDBACK_PROMPT = (
    "{question}\n\nThis answer was given:\n\n{answer}\n\n"
    "Your task now is to give feedback on that answer. Say what in it is wrong or missing, and how to put it right. "
    f"If it is right as it stands, let the feedback be this one sentence: {STOP_SENTENCE}"
)
REFINE_PROMPT = "{question}\n\n{history}\n\nAnswer the question once more, heeding the feedback."
NO_ANSWER_TOLD = "(no answer)"

_SENTENCE = re.compile(r"[.!?;:\n]+")
_STOP = re.compile(
    r"nothing (?:(?:is|needs|has|ought) )?(?:to |should |must )?(?:be )?(?:chang(?:ed?|ing)|mended|corrected)"
    r"|no (?:further )?(?:change|correction)s? (?:(?:is|are) )?(?:needed|necessary|required)"
)
_ENDS = {
    "all_rounds": "{} went through all rounds",
    "unchanged": "{} ended early because the feedback was that nothing is to be changed",
    "no_feedback": "{} because there was no feedback",
    "no_reply": "{} because a prompt was given no reply at all, as where a server refuses it",
    "unwritable": "{} because a reply holds a control token that the tokenizer can't write as text",
    "no_room": "{} because the next prompt would have left no room for a reply (its rounds were skipped)",
}
"""Why a chain ended → how a sentence counts such chains."""


class Refined(NamedTuple):
    """The scores of the last answers, and a row of table ``refinements`` for every reply."""

    scores: pd.DataFrame
    refinements: pd.DataFrame


def refine_answers(
    sampler: Sampler,
    questions: pd.DataFrame,
    section: EvaluateConfig,
    *,
    rounds: int,
    seed: int,
    rules: MatchRules,
    on_progress: Callable[..., None],
) -> Refined:
    """Answer questions, and have the model mend its answers.

    Args:
        sampler: samples from the model as it is.
        questions: rows of :data:`~mralign_core.schemas.questions.QUESTIONS`.
        section: decoding of every reply, and draws a question.
        rounds: most rounds after the first answer; with 0 the scores are those of think-on but for the variant.
        seed: of the run.
        rules: how answers are compared.
        on_progress: called with chains done and asked for.

    Raises:
        DataError: a server failed to give one of the replies.
    """
    decoding = Decoding.of(section, seed)
    first = requests_of(questions, "on", section.num_draws)
    chains = [_Chain(request, rounds, sampler.family) for request in first]
    waits_for: dict[SampleRequest, _Chain] = dict(zip(first, chains, strict=True))
    num_done = 0

    def follow_up(request: SampleRequest, sample: Sample) -> SampleRequest | None:
        nonlocal num_done
        chain = waits_for.pop(request)
        following = chain.take(sample, lambda wanted: sampler.has_room(wanted, decoding))
        if following:
            waits_for[following] = chain
        num_done += following is None
        return following

    for _ in sampler.draw(first, decoding, follow_up):
        on_progress(num_done, len(chains))
    refuse_failed(first, [chain.replies[-1] for chain in chains], SELF_REFINE)  # none goes on behind a failed one
    scores = score_answers(first, [chain.last_answer for chain in chains], questions, sampler.family, rules)
    totals = {
        "num_prompt_tokens": [sum(len(reply.prompt_ids) for reply in chain.replies) for chain in chains],
        "num_tokens": [sum(len(reply.completion_ids) for reply in chain.replies) for chain in chains],
    }
    rows = REFINEMENTS.frame([row for chain in chains for row in chain.rows()])
    return Refined(scores.assign(variant=SELF_REFINE, **totals), rows)


def says_unchanged(feedback: str) -> bool:
    """Whether a sentence of the feedback says that nothing is to be changed, in these or much the same words.

    >>> says_unchanged("The answer is right. **Nothing is to be changed!**"), says_unchanged("No changes are needed.")
    (True, True)
    >>> says_unchanged("Nothing is to be changed except the year."), says_unchanged("")
    (False, False)
    """
    sentences = (" ".join(re.findall(r"\w+", part.casefold())) for part in _SENTENCE.split(feedback))
    return any(_STOP.fullmatch(sentence) for sentence in sentences)


def count_ends(refinements: pd.DataFrame) -> dict[str, int]:
    """Why a chain ended → how many did."""
    counts = Counter(refinements["end"])
    return {end: counts[end] for end in CHAIN_ENDS if end and counts[end]}


def note_on_chains(refinements: pd.DataFrame) -> str:
    """What a reader must know of how Self-Refine came to its answers."""
    counts = count_ends(refinements)
    said = "; ".join(_ENDS[end].format(f"{count:,}") for end, count in counts.items())
    return f"Self-Refine: of {sum(counts.values()):,} answers, {said}. All replies are in the artifact of its scores."


@dataclass
class _Chain:
    """A question's draw: its replies so far, by turns an answer and feedback on it."""

    request: SampleRequest
    rounds: int
    family: Family
    replies: list[Sample] = field(default_factory=list)
    end: str = ""

    @property
    def last_answer(self) -> Sample:
        """The answer that counts: no refinement that was not given takes the place of the answer before it."""
        return (self.replies[:-1] if self.end == "no_reply" else self.replies)[::2][-1]

    def take(self, reply: Sample, has_room: Callable[[SampleRequest], bool]) -> SampleRequest | None:
        """Take a reply in; returns what is asked next, if anything."""
        self.replies.append(reply)
        if reply.finish_reason == FAILED:
            return None
        if len(self.replies) > 1 and not reply.completion_ids and reply.end_token_id is None:
            self.end = "no_reply"
            return None
        is_answer = len(self.replies) % 2 == 1
        following = self._ask_feedback() if is_answer else self._ask_refinement()
        if following:
            self.end = _why_unaskable(following, has_room)
        return None if self.end else following

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows of table ``refinements``."""
        for place, reply in enumerate(self.replies):
            yield {
                "question_id": self.request.question_id,
                "draw": self.request.draw,
                "round": (place + 1) // 2,
                "kind": "feedback" if place % 2 else "answer",
                "completion": reply.completion,
                "num_prompt_tokens": len(reply.prompt_ids),
                "num_tokens": len(reply.completion_ids),
                "end": self.end if place == len(self.replies) - 1 else "",
            }

    def _ask_feedback(self) -> SampleRequest | None:
        if len(self.replies) > 2 * self.rounds:
            self.end = "all_rounds"
            return None
        answer = self._text(self.replies[-1]) or NO_ANSWER_TOLD
        return self._request("feedback", FEEDBACK_PROMPT.format(question=self.request.question, answer=answer))

    def _ask_refinement(self) -> SampleRequest | None:
        *_, feedback = texts = [self._text(reply) for reply in self.replies]
        if not feedback or says_unchanged(feedback):
            self.end = "unchanged" if feedback else "no_feedback"
            return None
        history = "\n\n".join(_told(texts))
        return self._request("refinement", REFINE_PROMPT.format(question=self.request.question, history=history))

    def _request(self, kind: str, text: str) -> SampleRequest:
        """A request of the same draw whose name, and so its random numbers, no other has."""
        name = f"{self.request.question_id} ({kind} {(len(self.replies) + 1) // 2})"
        return self.request._replace(question_id=name, question=text)

    def _text(self, reply: Sample) -> str:
        return (parse_sample(reply, "on", self.family).answer or "").strip()


def _why_unaskable(request: SampleRequest, has_room: Callable[[SampleRequest], bool]) -> str:
    """Why a request made of a model's replies can't be asked; "" where it can."""
    try:
        return "" if has_room(request) else "no_room"
    except DataError:  # a reply spells out a control token, and the tokenizer has no other tokens for it
        return "unwritable"


def _told(texts: Sequence[str]) -> Iterator[str]:
    """Answers and feedback, by turns, as a prompt tells them."""
    for place, text in enumerate(texts):
        if place % 2:
            yield f"Feedback on it:\n\n{text}"
        else:
            yield f"{'This answer followed' if place else 'This answer was given'}:\n\n{text or NO_ANSWER_TOLD}"

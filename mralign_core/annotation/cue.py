"""Offline annotators that go by cue words: a free baseline, and the pocket world's annotators.

They answer the very prompts that language models get, in the same JSON, so that everything after them is
exercised too. The lexicon here knows the paper's 15 labels; a label set file brings a lexicon of its own.
Noise (an overlooked cue, a wrong label) is drawn from a hash of annotator, seed, trace and segment, and so
depends on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import regex

from mralign_core.annotation.prompts import read_payload
from mralign_core.errors import ConfigError
from mralign_core.label_sets import Lexicon
from mralign_core.llm import offline
from mralign_core.llm.offline import Message

PROVIDER = "cue"
PARAMETER = "cue_noise"
"""Request parameter that carries :class:`Noise`, so that it is part of the request and of its digest."""

LEXICON: dict[str, dict[str, float]] = {
    "framing": {
        r"^(okay|ok|alright|right),? (so|let's|let me)\b": 5,
        r"\bthe (question|user|problem|prompt|goal)( here)? (is|asks|wants|seems|says|might)\b": 6,
        r"\b(question|user|user's query) (asks|is asking|wants)\b": 8,
        r"\b(figure out|understand|answer) (the|this|what|who|when|where|which|how|why|if|whether)\b": 5,
        r"\b(understand the question|let me understand)\b": 8,
        r"\bthe (goal|task|problem) is\b": 8,
        r"\bi('m trying| need| have|'ve got| want) to (figure|find|determine|answer|come up|identify)\b": 7,
        r"\bi (don't|do not) know much\b": 4,
    },
    "backtracking": {
        r"^(but |hmm,? |oh,? )*(wait|hold on)\b": 5,
        r"\bwait,? (no|maybe|perhaps|actually|that's not|i think|i'm|could)\b": 7,
        r"\b(go|going|went) back\b": 7,
        r"\b(try|start|begin)( it)? (another|again|over|a different)\b": 7,
        r"\b(that is|that's|that was|this is|might be|may be|i was|i'm) (not right|wrong|mistaken)\b": 6,
        r"\b(alternatively|another (possibility|angle|thought|idea|approach|option))\b": 7,
        r"\b(mixing|mixed) (it|them|that|this|things)? ?up\b": 6,
        r"\b(confus|conflat)(ed|ing)\b": 5,
        r"^(hmm|actually)\b": 5,
        r"\bor maybe\b": 4,
    },
    "self_verification": {
        r"^(but |hmm,? |oh,? )*(wait|hold on)\b": 4,
        r"\b(let me|i should|i'll|i need to|to|let's)( also| probably| just)* (double[- ]?)?check\b": 9,
        r"\b(double|cross)[- ]?check": 9,
        r"\b(verify|verified|verifying|confirm|make sure|fact-check)\b": 8,
        r"\bis that (right|correct|accurate)\b": 7,
        r"\bdoes that (make sense|sound right)\b": 7,
        r"\bthat (makes sense|sounds right|checks out)\b": 5,
        r",? right\?": 5,
    },
    "evaluation": {
        r"\bhow likely\b": 8,
        r"\b(not|never) (entirely |completely |really |quite |too |100% |so )?(sure|certain|confident)\b": 6,
        r"\b(best|better|likely|strongest|plausible) (option|candidate|choice|guess|answer)\b": 7,
        r"\b(seems|sounds|looks) (more )?(plausible|likely|reasonable|right|off)\b": 6,
        r"\bi('m| am) (pretty|fairly|quite|more|a bit) (sure|confident|certain|unsure|confused)\b": 6,
        r"\b(unlikely|most likely|more likely|plausible|possible, but)\b": 5,
        r"\bdoesn't (seem|sound|feel) right\b": 6,
    },
    "decomposition": {
        r"\bbreak (this|it|that|the \w+) (down|into)\b": 9,
        r"^first(ly)?,? (i'll|i need|i should|let me|let's|i have to|i want)\b": 8,
        r"\bfirst\b[^.?!]*\bthen\b": 7,
        r"\bstep by step\b": 7,
        r"\b(several|two|three|a few|different) (parts|steps|aspects|factors|components)\b": 6,
        r"\bstart (by|with)\b": 6,
        r"^(1\.|step 1)": 6,
    },
    "chaining": {
        r"\b(it|this) follows that\b": 9,
        r"^so,? then\b": 9,
        r"^next\b": 8,
        r"^(then|so|thus|hence|now)\b": 5,
        r"\b(which|that|this) (means|implies|suggests) that\b": 5,
        r"\bif (that|this|it|so|the)\b.*\bthen\b": 6,
        r"\bso (if|that would|it would|it must|that must)\b": 5,
        r"^(also|additionally|furthermore|moreover|plus|as for)\b": 4,
    },
    "causal_reasoning": {
        r"\bbecause\b": 6,
        r"^(because|since)\b": 8,
        r"\b(leads?|led|leading) to\b": 6,
        r"\b(due to|as a result|caused?( by)?|therefore,? .* (would|must))\b": 5,
        r"\bmust be\b": 4,
        r"\bif .*,? (would|could|might) (have|be|not)\b": 4,
        r"\bwhy\b": 3,
    },
    "retrieval": {
        r"\bi( also| do| kind of| vaguely)? (recall|remember|know)\b": 8,
        r"\bfrom what i (know|recall|remember|understand|'ve \w+)\b": 8,
        r"\bi('ve| have)( also)? (heard|read|seen|learned|come across)\b": 7,
        r"\b(known (for|as)|according to|as far as i know|famous for)\b": 6,
        r"\bi( also)? (think|believe) (the|it|that|there|he|she|they|it's|in|\w+ (is|was|were|are|had))\b": 5,
        r"\b(recall|remember)(ing)?\b": 6,
        r"\b(in|since|around|during) (the )?(1[0-9]{3}|20[0-9]{2})s?\b": 4,
        r"\b(is|was|were|are|has|had)\b": 3,
    },
    "analogy": {
        r"\bby analogy\b": 9,
        r"\b(is|are|was|were|be) (very |quite |kind of )?similar to\b": 8,
        r"^similarly\b": 8,
        r"\b(just like|analogous|the same way|reminds me of|similar to)\b": 7,
        r"\bsimilar\b": 4,
    },
    "synthesis": {
        r"\bputting (it|this|that|these|everything|all)( all| of this| pieces)? together\b": 9,
        r"^(therefore|thus|hence|so,? therefore)\b": 8,
        r"\bthe (final )?answer (is|should be|would be|must be)\b": 6,
        r"\b(based on|given|considering|taking) (all )?(this|that|these|everything)\b": 7,
        r"\bso,? (i think|i'd say|i believe|the answer|it's|it seems|i'm (pretty|fairly))\b": 5,
        r"\b(combining|all together|piece (it|this) together)\b": 7,
        r"\btherefore\b": 6,
    },
    "comparison": {
        r"\bcompar(e|ed|ing|ison)\b": 8,
        r"^between\b": 8,
        r"\b(fits|works|is) better\b": 6,
        r"\bthe better one\b": 7,
        r"\b(on the other hand|whereas|in contrast|unlike|versus|vs\.?|rather than|as opposed to)\b": 7,
        r"\b(while|different from|differs? from|the difference|more than|larger than|bigger than)\b": 4,
        r"\beither\b.*\bor\b": 5,
    },
    "categorization": {
        r"\bbelongs? to\b": 8,
        r"\b(category|categories|categorized?|classified|classification)\b": 8,
        r"\b(is|are) (a|one) (kind|type|sort|form|subset|class) of\b": 8,
        r"\b(types?|kinds?|forms?|genres?) of\b": 5,
    },
    "case_analysis": {
        r"\bfor (example|instance)\b": 7,
        r"^for (example|instance)\b": 9,
        r"\bin the case of\b": 7,
        r"\b(counter-?examples?|precedents?|suppose|what if|let's say)\b": 7,
        r"\b(such as|like when|e\.g\.|one example)\b": 5,
        r"\bwhat about\b": 5,
    },
    "explanation": {
        r"\bthe reason (is|was|for|why|being)\b": 9,
        r"\bin other words\b": 9,
        r"\b(this|that|which|it) means\b": 7,
        r"\b(refers to|that is why|that's why|so that|i\.e\.|basically|essentially)\b": 5,
        r"\b(this|that|which|it) (makes|would explain|explains|would make)\b": 5,
    },
    "summarization": {
        r"\bin (short|summary|brief|a nutshell)\b": 9,
        r"\bto (sum|wrap)( it| this| things)?( all)? up\b": 9,
        r"\bto summari[sz]e\b": 9,
        r"\b(summari[sz]e|summary|recap)\b": 7,
        r"\b(in conclusion|to conclude|overall|all in all)\b": 8,
    },
}
"""Label → pattern (of lower-case text) → strength, 0 to 10. Words that labels share are weak."""


class Noise(NamedTuple):
    """How an offline annotator errs, and the lexicon it goes by.

    ``labels`` are those of the taxonomy, in canonical order.
    """

    labels: Sequence[str]
    seed: int
    drop_prob: float
    flip_prob: float
    lexicon: Lexicon = LEXICON


class Habit(NamedTuple):
    """How an annotator weighs cues.

    ``opening_bonus`` is added to cues in a segment's first words, ``vote_bonus`` to labels that were voted
    for. A second label is given where its score is this share of the first one's; ``last_of_ties`` prefers
    the later label of equals.
    """

    opening_bonus: float
    second_share: float
    last_of_ties: bool = False
    vote_bonus: float = 0.0


HABITS = {
    "a": Habit(opening_bonus=1.5, second_share=0.85),
    "b": Habit(opening_bonus=1.0, second_share=0.95, last_of_ties=True),
    "adjudicator": Habit(opening_bonus=1.25, second_share=0.9, vote_bonus=1.0),
}
LONGEST_SEARCH_S = 5.0
OPENING_CHARACTERS = 30
REPEAT_BONUS = 0.5
"""Added for each further cue of the same label."""
MAX_CONFIDENCE = 10.0


def cue_reply(annotator: str, messages: Sequence[Message], noise: Noise) -> str:
    """The JSON reply of annotator ``a``, ``b`` or ``adjudicator`` to a request."""
    payload = read_payload(messages)
    texts = [segment["text"] for segment in payload["segments"]]
    habit = HABITS[annotator]
    if "disputed" in payload:
        steps = [_adjudicate(step, texts, habit, noise) for step in payload["disputed"]]
    else:
        shown = hashlib.sha256(json.dumps([payload["question"], texts]).encode()).hexdigest()
        scores = [
            _err(score_cues(text, habit, noise.lexicon), f"{annotator} {noise.seed} {shown} {index} ", noise)
            for index, text in enumerate(texts)
        ]
        asked = payload.get("asked", range(len(texts)))
        steps = [_step([index], scores[index], habit, noise.labels) for index in asked]
    sure = [rating["confidence"] for step in steps for rating in step["labels"]]
    return json.dumps({"steps": steps, "overall_confidence": round(sum(sure) / len(sure), 1) if sure else 0.0})


def score_cues(text: str, habit: Habit, lexicon: Lexicon = LEXICON) -> dict[str, float]:
    """Score, 0 to 10, of each label that has a cue in a segment.

    >>> max(score_cues("Wait, let me double-check that.", HABITS["a"]).items(), key=lambda item: item[1])[0]
    'self_verification'
    """
    lowered = text.strip().lower().replace("’", "'")
    scores = {}
    for label, cues in _compiled(json.dumps(lexicon)).items():
        found = [
            strength + habit.opening_bonus * (match.start() < OPENING_CHARACTERS)
            for pattern, strength in cues
            if (match := _search(pattern, lowered, label))
        ]
        if found:
            scores[label] = min(MAX_CONFIDENCE, max(found) + REPEAT_BONUS * (len(found) - 1))
    return scores


def _search(pattern: regex.Pattern[str], text: str, label: str) -> regex.Match[str] | None:
    """Search as ``re`` does, but not for ever: patterns come from label set files too.

    Raises:
        ConfigError: the pattern takes longer than any sensible one.
    """
    try:
        return pattern.search(text, timeout=LONGEST_SEARCH_S)
    except TimeoutError:
        raise ConfigError(
            f"annotate.label_set: cue {pattern.pattern!r:.80} of label {label!r} takes over {LONGEST_SEARCH_S:g} s on "
            f"segment {text!r:.60}: write it without one repetition inside another, such as (a+)+"
        ) from None


@cache
def _compiled(lexicon: str) -> dict[str, list[tuple[regex.Pattern[str], float]]]:
    return {
        label: [(regex.compile(pattern, regex.DOTALL), strength) for pattern, strength in cues.items()]
        for label, cues in json.loads(lexicon).items()
    }


def uniform(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _err(scores: Mapping[str, float], key: str, noise: Noise) -> dict[str, float]:
    """Overlook the strongest label's cues, or take it for another label, each with its probability."""
    erring = dict(scores)
    if not erring:
        return erring
    strongest = max(erring, key=lambda label: erring[label])
    if uniform(f"{key}drop") < noise.drop_prob:
        del erring[strongest]
    elif uniform(f"{key}flip") < noise.flip_prob:
        others = [label for label in noise.labels if label != strongest]
        mistaken = others[int(uniform(f"{key}other") * len(others))] if others else strongest
        erring[mistaken] = erring.pop(strongest)
    return erring


def _adjudicate(disputed: Mapping[str, Any], texts: Sequence[str], habit: Habit, noise: Noise) -> dict[str, Any]:
    """Decide a disputed step by the cues, with a bonus for labels that an annotator gave."""
    scores = score_cues("\n\n".join(texts[index] for index in disputed["thinking_step"]), habit, noise.lexicon)
    voted = {rating["label"] for votes in ("annotator_a", "annotator_b") for rating in disputed[votes]}
    scores = {
        label: min(MAX_CONFIDENCE, score + habit.vote_bonus * (label in voted)) for label, score in scores.items()
    }
    return _step(disputed["thinking_step"], scores, habit, noise.labels)


def _step(segments: list[int], scores: Mapping[str, float], habit: Habit, labels: Sequence[str]) -> dict[str, Any]:
    """A step of the reply: the label with the highest score, and a second one that comes close."""
    direction = -1 if habit.last_of_ties else 1
    places = {label: direction * place for place, label in enumerate(labels)}
    ranked = sorted((label for label in scores if label in places), key=lambda name: (-scores[name], places[name]))
    given = [label for label in ranked[:2] if scores[label] >= habit.second_share * scores[ranked[0]]]
    return {
        "thinking_step": segments,
        "labels": [{"label": label, "confidence": round(scores[label], 1)} for label in given],
    }


offline.register(
    PROVIDER,
    tuple(HABITS),
    lambda model, messages, params: cue_reply(model, messages, Noise(**params[PARAMETER])),
)

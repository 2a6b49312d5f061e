"""Where the thinking names a gold answer first and last, and what it does after that (Fig. 1 of arXiv 2510.24794).

Decisions where the paper is silent:

* What names a gold answer is for :mod:`mralign_core.method.matching` to say: a thinking has places exactly where its
  EM_t is 1. A place is the shortest run of words that still names it. Where a gold answer stands across a blank line,
  all of the thinking is searched as one piece.
* Places are counted in characters, from the beginning of the first segment (0) to the end of the last (1): scores hold
  texts and no tokens.
* What happens after the last mention is what the segments behind its own do, up to the end of the thinking. Of merged
  segments, which are one step, none is counted twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.evaluation.mention_search import UNBROKEN, WordSearch, word_search
from mralign_core.method.matching import DEFAULT_RULES, MatchRules, contains_match
from mralign_core.method.traces import Span, split_segments

ENDINGS = ("named_right", "named_wrong", "unnamed_right", "unnamed_wrong")
"""Whether the thinking names a gold answer, and whether the answer is right. ``named_wrong`` is the hit gap that the
paper begins with: the right fact was there, and something else was answered."""
MENTION_COLUMNS = (
    *("first", "last", "first_segment", "last_segment", "segments_after", "characters_after"),
    *("num_segments", "num_characters"),
)
"""What :func:`describe_mentions` says of a thinking."""
UNLABELLED = "unlabelled"
"""What a step without a label is called in a path of steps."""


class Mention(NamedTuple):
    """The words that name a gold answer: in which segment they begin, and their characters in the text."""

    segment: int
    span: Span


class Mentions(NamedTuple):
    """The first and the last mention of a gold answer in a thinking; of a single one, twice the same."""

    first: Mention
    last: Mention


def find_mentions(
    text: str, segments: Sequence[Span], golds: Sequence[str], rules: MatchRules = DEFAULT_RULES
) -> Mentions | None:
    r"""Where a thinking names a gold answer first and last; None where it names none.

    Args:
        text: the thinking, or a completion that holds it.
        segments: characters of the thinking's segments in it, in order.
        golds: accepted answers.
        rules: what counts as naming one.

    >>> thinking = "Is it Oslo? Or Bergen?\n\nOslo, then. Oslo it is.\n\nSo, Bergen."
    >>> mentions = find_mentions(thinking, split_segments(thinking), ["Oslo"])
    >>> [(each.segment, thinking[slice(*each.span)], each.span.start) for each in mentions]
    [(0, 'Oslo?', 6), (1, 'Oslo', 36)]
    """
    whole = Span(segments[0].start, segments[-1].end) if segments else Span(0, 0)
    search = word_search(tuple(golds), rules)
    spans = None
    if search and _stand_apart(text, segments) and search.can_read(text[slice(*whole)]):
        if not search.may_name(text[slice(*whole)]):
            return None
        spans = _read_words(search, text, segments)
    spans = spans or _ask_stretches(text, segments, whole, partial(contains_match, golds=golds, rules=rules))
    starts = [piece.start for piece in segments]
    return spans and Mentions(*(Mention(bisect_right(starts, span.start) - 1, span) for span in spans))


def _stand_apart(text: str, segments: Sequence[Span]) -> bool:
    """Whether no word goes on across the edge of a segment."""
    inner = [*(span.start - 1 for span in segments[1:]), *(span.end for span in segments[:-1])]
    return all(text[place].isspace() for place in inner)


def _read_words(search: WordSearch, text: str, segments: Sequence[Span]) -> tuple[Span, Span] | None:
    """The first and the last words in a segment that name a gold answer, each word read once."""
    first = next(filter(None, (search.stretches(text, piece) for piece in segments)), None)
    last = next(filter(None, (search.stretches(text, piece) for piece in reversed(segments))), None)
    if first is None or last is None:
        return None
    end, start = min(span.end for span in first), max(span.start for span in last)
    return (
        Span(max(span.start for span in first if span.end == end), end),
        Span(start, min(span.end for span in last if span.start == start)),
    )


def _ask_stretches(
    text: str, segments: Sequence[Span], whole: Span, names: Callable[[str], bool]
) -> tuple[Span, Span] | None:
    """The first and the last words that name a gold answer, by asking of one stretch after another."""
    if not names(text[slice(*whole)]):
        return None
    first = next((piece for piece in segments if names(text[slice(*piece)])), whole)
    last = next((piece for piece in reversed(segments) if names(text[slice(*piece)])), whole)
    return _first_words(text, first, names), _last_words(text, last, names)


def describe_mentions(
    text: str, segments: Sequence[Span], golds: Sequence[str], rules: MatchRules = DEFAULT_RULES
) -> dict[str, float]:
    r"""Where a thinking names a gold answer, as numbers; what there is not is NaN.

    Returns:
        ``first`` and ``last``, where these mentions begin, from 0 (the thinking's beginning) to 1 (its end);
        ``first_segment`` and ``last_segment``, from 0; ``segments_after`` and ``characters_after``, behind the last
        mention's segment and behind the mention; ``num_segments`` and ``num_characters`` of the thinking.

    >>> thinking = "Oslo?\n\nOr Bergen?"
    >>> described = describe_mentions(thinking, split_segments(thinking), ["Oslo"])
    >>> described["last"], described["segments_after"], described["characters_after"], described["num_characters"]
    (0.0, 1, 12, 17)
    """
    start, end = (segments[0].start, segments[-1].end) if segments else (0, 0)
    length = {"num_segments": len(segments), "num_characters": end - start}
    mentions = find_mentions(text, segments, golds, rules)
    if mentions is None:
        return dict.fromkeys(MENTION_COLUMNS, np.nan) | length
    first, last = mentions
    return {
        "first": (first.span.start - start) / (end - start),
        "last": (last.span.start - start) / (end - start),
        "first_segment": first.segment,
        "last_segment": last.segment,
        "segments_after": len(segments) - 1 - last.segment,
        "characters_after": end - last.span.end,
        **length,
    }


def answer_mentions(
    scores: pd.DataFrame, golds: Mapping[str, Sequence[str]], rules: MatchRules = DEFAULT_RULES
) -> pd.DataFrame:
    """Where the thinking of each held-out answer names a gold answer.

    Args:
        scores: rows of :data:`~mralign_core.schemas.scores.SCORES`; those without EM_t are left out.
        golds: question_id → its gold answers; the thinking of an answer to another question has no place.
        rules: what counts as naming one; those that the answers were scored by.

    Returns:
        A row an answer: ``variant, question_id, stratum, draw, num_tokens``, ``ending`` (of :data:`ENDINGS`), and
        :data:`MENTION_COLUMNS`.
    """
    rows = []
    known: dict[tuple[str, str, bool], dict[str, float]] = {}  # variants share many a thinking
    for row in scores[scores["em_thought"].notna()].to_dict("records"):
        thinking = row["thinking"] if isinstance(row["thinking"], str) else ""
        of_answer = {name: row[name] for name in ("variant", "question_id", "stratum", "draw", "num_tokens")}
        ending = ending_of(is_named=bool(row["em_thought"]), is_right=bool(row["em_answer"]))
        key = (row["question_id"], thinking, bool(row["em_thought"]))
        if key not in known:  # what names none is known from its score, and is not read again
            named = golds.get(row["question_id"], ()) if row["em_thought"] else ()
            known[key] = describe_mentions(thinking, split_segments(thinking), named, rules)
        rows.append(of_answer | {"ending": ending} | known[key])
    columns = ["variant", "question_id", "stratum", "draw", "num_tokens", "ending", *MENTION_COLUMNS]
    return pd.DataFrame(rows, columns=columns)


def ending_of(*, is_named: bool, is_right: bool) -> str:
    """Of :data:`ENDINGS`, that of an answer whose thinking does, or does not, name a gold answer."""
    return f"{'named' if is_named else 'unnamed'}_{'right' if is_right else 'wrong'}"


def labelled_tails(
    traces: pd.DataFrame, annotations: pd.DataFrame, is_right: pd.Series, rules: MatchRules = DEFAULT_RULES
) -> pd.DataFrame:
    """What labelled traces that name a gold answer do after its last mention: the cases of the atlas.

    Args:
        traces: ``trace_id, question_id, question, answers, completion, segments`` as in
            :data:`~mralign_core.schemas.candidates.CANDIDATES`, and ``answer``.
        annotations: rows of :data:`~mralign_core.schemas.annotations.ANNOTATIONS`; a trace without any is left out.
        is_right: for each trace, whether its answer is right.
        rules: what counts as naming a gold answer.

    Returns:
        A row a trace that names one: ``trace_id, question_id, question, answers, answer, ending``,
        :data:`MENTION_COLUMNS`, ``mention`` (the text of the last mention's segment), ``at`` (what that segment does)
        and ``after``, what each step behind it does: label sets as text, as ``("evaluation", "analogy + comparison")``.
    """
    steps = _steps_by_trace(annotations)
    rows = []
    for row, right in zip(traces.to_dict("records"), is_right, strict=True):
        if row["trace_id"] not in steps:
            continue
        segments = [Span(segment["start"], segment["end"]) for segment in row["segments"]]
        described = describe_mentions(row["completion"], segments, row["answers"], rules)
        if np.isnan(described["last"]):
            continue
        place = int(described["last_segment"])
        rows.append(
            {name: row[name] for name in ("trace_id", "question_id", "question", "answers", "answer")}
            | {"ending": ending_of(is_named=True, is_right=bool(right)), **described}
            | {"mention": row["completion"][slice(*segments[place])]}
            | dict(zip(("at", "after"), at_and_behind(steps[row["trace_id"]], place), strict=True))
        )
    columns = [
        *("trace_id", "question_id", "question", "answers", "answer", "ending"),
        *MENTION_COLUMNS,
        "mention",
        "at",
        "after",
    ]
    return pd.DataFrame(rows, columns=columns)


def trace_paths(annotations: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Of each annotated trace, what each of its steps does: label sets as text, such as ``"analogy + comparison"``.

    Args:
        annotations: rows of :data:`~mralign_core.schemas.annotations.ANNOTATIONS`.
    """
    return {trace_id: at_and_behind(steps, -1)[1] for trace_id, steps in _steps_by_trace(annotations).items()}


def labels_in(path: Sequence[str]) -> set[str]:
    """The labels in a path of steps, each once.

    >>> sorted(labels_in(("evaluation", "analogy + evaluation", "unlabelled")))
    ['analogy', 'evaluation']
    """
    return {label for step in path for label in step.split(" + ")} - {UNLABELLED}


def _first_words(text: str, piece: Span, names: Callable[[str], bool]) -> Span:
    """The words of a piece of text that name a gold answer first, where the piece names one."""
    words = [Span(*word.span()) for word in UNBROKEN.finditer(text, *piece)]
    end = _shortest(words, lambda word: names(text[piece.start : word.end])).end
    upto = [word for word in words if word.end <= end]
    return Span(_shortest(upto[::-1], lambda word: names(text[word.start : end])).start, end)


def _last_words(text: str, piece: Span, names: Callable[[str], bool]) -> Span:
    """The words of a piece of text that name a gold answer last, where the piece names one."""
    words = [Span(*word.span()) for word in UNBROKEN.finditer(text, *piece)]
    start = _shortest(words[::-1], lambda word: names(text[word.start : piece.end])).start
    behind = [word for word in words if word.start >= start]
    return Span(start, _shortest(behind, lambda word: names(text[start : word.end])).end)


def _shortest(words: Sequence[Span], is_enough: Callable[[Span], bool]) -> Span:
    """The first word up to which a piece is long enough, where the whole of it is."""
    # A longer piece may name less, as "one hundred" no longer names 1: then some word at which it begins to.
    return words[min(bisect_left(words, True, key=is_enough), len(words) - 1)]


def _steps_by_trace(annotations: pd.DataFrame) -> dict[str, dict[int, tuple[int, str]]]:
    """Of each trace, the step and the labels of each segment."""
    steps: dict[str, dict[int, tuple[int, str]]] = {}
    columns: Any = annotations[["trace_id", "segment", "step", "labels"]]
    for trace_id, segment, step, labels in columns.itertuples(index=False):
        steps.setdefault(trace_id, {})[int(segment)] = (int(step), " + ".join(labels) or UNLABELLED)
    return steps


def at_and_behind(steps: Mapping[int, tuple[int, str]], place: int) -> tuple[str, tuple[str, ...]]:
    """What a segment does, and each step behind it.

    Args:
        steps: number of each segment → its step, and the labels of it as text.
        place: number of the segment; of a number that none has, all steps are behind it that are behind its place.
    """
    own, at = steps.get(place, (-1, UNLABELLED))
    behind = {step: labels for segment, (step, labels) in sorted(steps.items()) if segment > place and step != own}
    return at, tuple(behind.values())

"""The questions of a run, from the sets that its config names (App. A.2: any question → short-answer set).

A bad row is an error, never dropped: the file is the user's to mend, and silently asking fewer questions
would move every number of the run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.config import JudgeConfig, PocketConfig, QuestionsConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.method.benchmarks import ScoringName
from mralign_core.method.extraction import stated_number
from mralign_core.method.matching import ARTICLES
from mralign_core.pocket.world import build_world
from mralign_core.questions.columns import BadRowError, Columns, mean_missing
from mralign_core.questions.files import stream_files
from mralign_core.questions.guessable import GUESSABLE_KINDS, without_guessable
from mralign_core.questions.hub import load_split, pin_revision, stream_dataset
from mralign_core.questions.jsonl import Line, refuse
from mralign_core.questions.locating import COLUMN_OPTIONS, STRATA, LocatedSet, locate_sets
from mralign_core.questions.overlap import OVERLAP_COLUMNS, WithoutOverlap, drop_overlap, refuse_overlap
from mralign_core.schemas.judgements import SIMILARITY_PROVIDER
from mralign_core.schemas.questions import QUESTIONS

logger = logging.getLogger("mralign_core.questions")
REMEDY = "correct these lines or take them out"
NULL_WORDS_SHOWN = 5
NO_JUDGE = JudgeConfig()
UNSCORED: dict[ScoringName, tuple[str, str]] = {
    "truthful": (
        "scored by a judge, and none is named",
        "Name one in judge.endpoints (similarity/ngrams is an offline baseline); or, to score them by their gold "
        "answers, give the file as a set of your own with scoring: exact_match",
    ),
    "claims": (
        "scored by its supported claims, and a judge or evidence is not named",
        "Name a model in judge.endpoints and what claims are checked against in judge.evidence (corpus or search)",
    ),
}
"""How a set is scored whose answers may be kept and not scored → why not, and the remedy."""


class QuestionSets(NamedTuple):
    """What a run asks.

    ``questions`` are rows of :data:`~mralign_core.schemas.questions.QUESTIONS`, those to align on first; ``overlap``
    names the training questions that were taken out because they are evaluated on; ``revisions`` is the commit of each
    hub set. ``guessable`` lists the questions with a yes/no gold answer or one that stands in the question
    (:mod:`~mralign_core.questions.guessable`), which are left out where the config says so.
    """

    questions: pd.DataFrame
    overlap: pd.DataFrame
    revisions: dict[str, str]
    guessable: pd.DataFrame

    def of(self, split: str) -> pd.DataFrame:
        """The questions to align on (``train``), or to evaluate on (``eval``)."""
        return self.questions[self.questions["split"] == split].reset_index(drop=True)

    def guessable_of(self, split: str) -> pd.DataFrame:
        """Those of a split that can be guessed, asked or not."""
        return self.guessable[self.guessable["split"] == split].reset_index(drop=True)

    def counts(self, split: str) -> dict[str, Any]:
        """Questions of a split, by set; how many were taken out of training; and the commits of hub sets."""
        rows = self.of(split)
        taken_out = {"taken out of train": self.overlap["question_id"].nunique()} if split == "train" else {}
        guessable = self.guessable_of(split)
        return {
            split: len(rows),
            **{f"{split} with {GUESSABLE_KINDS[kind]}": int(n) for kind, n in guessable.groupby("kind").size().items()},
            **{f"{split} {source}": int(n) for source, n in rows.groupby("source", sort=False).size().items()},
            **taken_out,
            **{f"revision of {label}": revision for label, revision in self.revisions.items()},
        }


def read_question_sets(section: QuestionsConfig, pocket: PocketConfig, judge: JudgeConfig = NO_JUDGE) -> QuestionSets:
    """The questions to align on and those to evaluate on.

    Args:
        section: the sets, and what to do about questions that are in both.
        pocket: the pocket world, for its set.
        judge: the judges of the answers; without one, it is told what stays unscored.

    Raises:
        ConfigError: a set is not known, or not meant for what it is used for; or a judge is named for no set.
        DataError: a file or row is wrong, or both roles share a question or an id.
    """
    located = locate_sets(section)
    _require_judged(located, judge)
    frames: dict[str, list[pd.DataFrame]] = {"train": [QUESTIONS.frame([])], "eval": [QUESTIONS.frame([])]}
    revisions: dict[str, str] = {}
    for one in located:
        # Ids of training questions, on which their draws depend, do not depend on what is evaluated on.
        is_prefixed = sum(one.role == "eval" or other.role == "train" for other in located) > 1
        frame = _pocket_questions(one, pocket) if one.is_pocket else _read_set(one, is_prefixed, revisions)
        frames[one.role].append(_pick(frame, one))
        is_judged = {"truthful": bool(judge.endpoints), "claims": judge.evidence.is_named}
        if one.scoring in UNSCORED and not is_judged[one.scoring]:
            logger.warning(
                "%s: %s is %s: its questions are answered and the answers kept, but they are in no figure. %s; to save "
                "the answers' cost, take the set out",
                one.field,
                one.name,
                *UNSCORED[one.scoring],
            )
    train, evaluation = (pd.concat(found, ignore_index=True) for found in frames.values())
    if section.train_on:
        train = train[train["source"].isin(section.train_on)].reset_index(drop=True)
    train, overlap = _apart(train, evaluation, section)
    both = pd.concat([train, evaluation], ignore_index=True)
    questions, guessable = without_guessable(both, drop=section.on_guessable == "drop")
    return QuestionSets(questions, overlap, revisions, guessable)


def _require_judged(located: Sequence[LocatedSet], judge: JudgeConfig) -> None:
    """Refuse judges of nothing."""
    if not judge.endpoints:
        return
    held_out = {one.name: one.scoring for one in located if one.role == "eval"}
    gradable = {name for name, scoring in held_out.items() if scoring == "exact_match"}
    unknown = sorted(set(judge.graded) - gradable)
    if unknown and judge.graded != NO_JUDGE.graded:
        raise ConfigError(
            f"judge.graded names {', '.join(unknown)}, but of questions.eval these are scored by exact match: "
            f"{', '.join(sorted(gradable)) or 'none'}. Name some of them, or take it out"
        )
    has_model = any(not endpoint.model.startswith(f"{SIMILARITY_PROVIDER}/") for endpoint in judge.endpoints)
    counts_claims = judge.evidence.is_named and "claims" in held_out.values()
    if judge.evidence.is_named and not counts_claims:
        raise ConfigError(
            f"judge.evidence has no effect: questions.eval ({', '.join(held_out)}) has no set that is scored by its "
            "claims. Remove it, or evaluate on longfact or a set of your own with scoring: claims"
        )
    if "truthful" not in held_out.values() and not counts_claims and not (has_model and gradable & set(judge.graded)):
        raise ConfigError(
            f"judge.endpoints has no effect: of questions.eval ({', '.join(held_out)}) these judges score no set. "
            "Remove it, evaluate on truthfulqa or simpleqa, name a model, and in judge.graded a set to be graded, or "
            "for longfact judge.evidence"
        )


def _apart(train: pd.DataFrame, evaluation: pd.DataFrame, section: QuestionsConfig) -> WithoutOverlap:
    """The training questions that are not evaluated on, in the way the config wants."""
    kept, overlap = train, pd.DataFrame(columns=OVERLAP_COLUMNS)
    if section.on_overlap == "drop":
        kept, overlap = drop_overlap(train, evaluation)
        lost = len(train) - len(kept)
        logger.info("%d of %d training question(s) are evaluated on and are taken out", lost, len(train))
        if lost and kept.empty:
            raise DataError("questions: every training question is evaluated on, so none is left: change the sets")
    remedy = "change the sets, or set questions.on_overlap to drop, which takes them out of the training questions"
    refuse_overlap(kept, evaluation, remedy)
    return WithoutOverlap(kept, overlap)


def _pocket_questions(one: LocatedSet, pocket: PocketConfig) -> pd.DataFrame:
    frame = build_world(pocket.world_seed, pocket.overwrite_prob).questions_frame()
    asked = frame[(frame["split"] == one.role) & (frame["stratum"].isin([one.subset] if one.subset else STRATA))]
    return asked.assign(source=one.name)


def _read_set(one: LocatedSet, prefix_ids: bool, revisions: dict[str, str]) -> pd.DataFrame:
    """All questions of a set; of one on the hub, its commit is noted in ``revisions``.

    Raises:
        DataError: its rows have other columns than it may have, or are no questions; all bad rows are named at once.
    """
    problems: list[str] = []
    needed = {name for columns in one.formats for name in columns.names}
    lines = stream_files(one.files, one.field, problems, needed) if one.files else _from_hub(one, revisions)
    first = next(lines, None)
    if first is None:
        refuse(one.where, one.field, problems, REMEDY)
        raise DataError(f"{one.field}: {one.where} is empty; give at least one question")
    columns = _columns(one, first)
    rows = list(_rows(one, columns, chain([first], lines), prefix_ids, problems))
    refuse(one.where, one.field, problems, REMEDY)
    golds = [(row["question_id"], row["answers"]) for row in rows]
    warn_of_gold_answers(f"{one.field}: {one.where}", golds)
    return QUESTIONS.frame(rows)


def _from_hub(one: LocatedSet, revisions: dict[str, str]) -> Iterator[Line]:
    revision = pin_revision(one.hub_id, one.config.revision, one.field)
    logger.info("%s: split %s of %s, revision %s", one.field, one.split, one.hub_id, revision or "in the local cache")
    revisions[one.label] = revision
    return stream_dataset(load_split(one.hub_id, one.subset, one.split, revision, one.field))


def _rows(
    one: LocatedSet, columns: Columns, lines: Iterable[Line], prefix_ids: bool, problems: list[str]
) -> Iterator[dict[str, Any]]:
    places: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        try:
            read = columns.read(line)
        except BadRowError as error:
            problems.append(f"{line.place}: {error}")
            continue
        problems += _repeat(places, read.own_id, line.place, columns.own_id)
        problems += [
            f"{line.place}: field {columns.answer!r} must be a number where scoring is number, got {answer!r:.80}"
            for answer in (read.answers if one.scoring == "number" else [])
            if stated_number(answer) is None
        ]
        yield {
            "question_id": read.own_id if read.own_id and not prefix_ids else f"{one.label}-{read.own_id or number}",
            "question": read.text,
            "answers": read.answers,
            "source": one.name,
            "split": one.role,
            "stratum": read.stratum,
            "scoring": one.scoring,
            "options": read.options,
            "incorrect_answers": read.incorrect_answers,
        }


def _columns(one: LocatedSet, first: Line) -> Columns:
    """The format of a set's rows, by the columns of its first.

    Raises:
        DataError: it is none that the set may have; lists the columns found and those accepted.
    """
    for columns in one.formats:
        if columns.fit(first.values):
            return columns
    found = f"{first.place} has {', '.join(map(repr, first.values)) or 'none'}"
    if one.known:
        accepted = ", or ".join(" + ".join(columns.names) for columns in one.formats)
        raise DataError(
            f"{one.field}: {one.where} does not have the columns of {one.name}, {accepted}; {found}. If they are your "
            "own, give the set another name and say which they are"
        )
    options = {option: getattr(one.config, option) for option in COLUMN_OPTIONS}
    option, column = next((o, c) for o, c in options.items() if c and c not in first.values)
    raise DataError(
        f"{one.field}: {one.where} has no field {column!r}; {found}. Set {option} to the field that holds it, as in "
        f"{one.field}: {{path: …, {option}: …}}"
    )


def _pick(frame: pd.DataFrame, one: LocatedSet) -> pd.DataFrame:
    """As many questions as the config wants, in their order.

    A random subset has the questions whose digests are smallest: it is the same whatever the order of the file, and a
    smaller one is part of a larger one.
    """
    limit = one.config.limit
    if one.config.pick == "first" or not limit:
        return frame.head(limit or len(frame))
    digests = frame["question"].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    return frame.loc[digests.sort_values(kind="stable").index[:limit].sort_values()]


def warn_of_gold_answers(where: str, answers: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Warn of gold answers that may stand for none, and of those that stand in nearly any sentence.

    Args:
        where: config field and file, for the message.
        answers: id and gold answers of each question.
    """
    _warn_of_null_words(where, answers)
    _warn_of_articles(where, answers)


def _warn_of_null_words(where: str, answers: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Warn of gold answers such as "nan" and "None": a few questions have them, but programs write them for none."""
    suspects = [(name, golds) for name, golds in answers if mean_missing(golds)]
    if suspects:
        listed = ", ".join(f"{name} ({', '.join(map(repr, golds))})" for name, golds in suspects[:NULL_WORDS_SHOWN])
        logger.warning(
            "%s: %d of %d gold answers are words that programs write for a missing value, and are taken as they stand, "
            "so that any other answer is wrong: %s%s. Where they mean that there is none, take these rows out",
            where,
            len(suspects),
            len(answers),
            listed,
            ", …" if len(suspects) > NULL_WORDS_SHOWN else "",
        )


def _warn_of_articles(where: str, answers: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Warn of gold answers that are an article, such as "A" in multiple choice: they stand in nearly any sentence."""
    suspects = [name for name, golds in answers if golds and all(gold.casefold() in ARTICLES for gold in golds)]
    if suspects:
        logger.warning(
            "%s: %d of %d questions have no gold answer but an article (%s%s), which is right only where it is the "
            "whole answer: 'The answer is (A).' and 'Option A' count as wrong. In multiple choice, give the text of "
            "the right option as the gold answer, or name the options by numbers",
            where,
            len(suspects),
            len(answers),
            ", ".join(suspects[:NULL_WORDS_SHOWN]),
            ", …" if len(suspects) > NULL_WORDS_SHOWN else "",
        )


def repeated_ids(lines: Sequence[Line], ids: Sequence[str], column: str) -> list[str]:
    """A problem for each line whose id an earlier line has."""
    places: dict[str, str] = {}
    return [
        problem for line, own in zip(lines, ids, strict=True) for problem in _repeat(places, own, line.place, column)
    ]


def _repeat(places: dict[str, str], own: str, place: str, column: str) -> list[str]:
    """A problem, if the id was at another of the ``places`` seen before."""
    first = places.setdefault(own, place)
    return [f"{place}: field {column!r} repeats id {own!r} of {first}"] if own and first != place else []

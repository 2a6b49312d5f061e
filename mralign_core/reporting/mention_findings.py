"""Where the thinking names the gold answer, and what happens between its last mention and the answer (Fig. 1).

No difference is claimed whose interval includes 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from mralign_core.evaluation.held_out_traces import VANILLA
from mralign_core.evaluation.mentions import ENDINGS, answer_mentions, labelled_tails, labels_in
from mralign_core.evaluation.metrics import order_variants
from mralign_core.method.matching import DEFAULT_RULES, MatchRules
from mralign_core.method.taxonomy import STOP_NAME, Taxonomy
from mralign_core.reporting.case_addresses import case_address
from mralign_core.reporting.decision_findings import cut_text
from mralign_core.reporting.parting_figures import ENDING_TITLES, mention_places
from mralign_core.reporting.report_block import ARROW, Block, Case, LinkedTable, judged_gap, listed, question_gap
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import UNDEFINED, variant_title

MOST_PATHS = 12
"""Paths of steps, and first steps, that are listed."""
MOST_CASES = 6
"""Cases that are shown: one of each of the commonest paths."""
MOST_STEPS = 3
"""First steps of a path that are listed."""
MOST_CASE_STEPS = 12
"""First steps of a path that a case shows."""
AT_ONCE = "(the answer follows)"
"""What a path without a step is called."""


def mention_block(scores: pd.DataFrame, questions: pd.DataFrame, confidence: float, rules: MatchRules) -> Block | None:
    """Where the gold answer is named first and last (Fig. 1); None where no think-on answer could name one.

    Args:
        scores: rows of ``schemas.scores``.
        questions: rows of ``schemas.questions``, of all of them.
        confidence: coverage of the interval.
        rules: what counts as naming.
    """
    golds = dict(zip(questions["question_id"], questions["answers"], strict=True))
    mentions = answer_mentions(scores, golds, rules)
    if not (mentions["variant"] == "on").any():
        return None
    return Block(
        title="Where the thinking names the gold answer",
        lead="First and last mention in the thinking, by characters, as exact match finds them (EM_t).",
        sentences=mention_sentences(mentions[mentions["variant"] == "on"], confidence),
        chart="mentions",
        figure=mention_places(mentions),
        caption="Think on, answers whose thinking names the gold answer. Orange: the hit gap. Last panel: how many "
        "segments of the thinking follow that of the last mention.",
        tables=[mention_table(mentions)],
    )


def mention_sentences(mentions: pd.DataFrame, confidence: float) -> list[str]:
    """How often the gold answer is named and lost, and whether its last mention stands elsewhere where it is lost.

    Args:
        mentions: what ``mentions.answer_mentions`` returns, of one variant.
        confidence: coverage of the interval.
    """
    number = mentions["ending"].value_counts().reindex(list(ENDINGS), fill_value=0)
    named, lost = number["named_right"] + number["named_wrong"], number["named_wrong"]
    share = points(named / len(mentions))
    text = f"The thinking of {named:,} of {len(mentions):,} answers names the gold answer ({share} %)"
    if not named:
        return [f"{text}."]
    sentences = [
        f"{text}; {lost:,} of these answer something else ({points(lost / named)} %). "
        f"Right though their thinking names none: {number['unnamed_right']:,}."
    ]
    rows = mentions[mentions["last"].notna()]
    gap = _gap(rows, rows["last"], confidence)
    if np.isnan(gap[0]):
        return sentences
    means = rows.groupby("ending")["last"].mean()
    sentences.append(
        f"In the mean the last mention stands {points(means['named_wrong'])} % of the way where the answer is wrong "
        f"and {points(means['named_right'])} % where it is right: {judged_gap(gap, 'it does not differ measurably')}"
    )
    goes_on = (rows["segments_after"] >= 1).groupby(rows["ending"]).mean()
    gap = _gap(rows, (rows["segments_after"] >= 1).astype(float), confidence)
    sentences.append(
        f"After it, {points(goes_on['named_wrong'])} % of the wrong ones go on for a segment or more, and "
        f"{points(goes_on['named_right'])} % of the right ones: {judged_gap(gap, 'no measurable difference')}"
    )
    return sentences


def mention_table(mentions: pd.DataFrame) -> ResultTable:
    """Places and what follows, by variant and outcome, of answers whose thinking names the gold answer."""
    rows, addresses = [], []
    for variant in order_variants(list(mentions["variant"].unique())):
        for ending in ENDINGS[:2]:
            found = mentions[(mentions["variant"] == variant) & (mentions["ending"] == ending)].dropna(subset=["last"])
            places = [points(found[name].median()) for name in ("first", "last")]
            after = [f"{found['segments_after'].mean():.1f}", points((found["segments_after"] == 0).mean())]
            numbers = [*places, *after] if len(found) else [UNDEFINED] * 4
            rows.append([variant_title(variant), ENDING_TITLES[ending], f"{len(found):,}", *numbers])
            addresses.append(case_address("answers", variant=variant, ending=ending))
    columns = ["variant", "outcome", "answers", "first, %", "last, %", "segments after", "in the last segment, %"]
    title = "Places are medians, in % of the thinking; segments after are means"
    return LinkedTable.of(ResultTable(columns, rows, ["outcome"], title), addresses)


def tail_block(
    traces: pd.DataFrame,
    annotations: pd.DataFrame,
    taxonomy: Taxonomy,
    confidence: float,
    rules: MatchRules = DEFAULT_RULES,
    *,
    is_held_out: bool = False,
) -> Block | None:
    """The atlas: what labelled traces do between the last mention of the gold answer and their answer; None where no
    trace names one and answers wrong.

    Args:
        traces: as ``mentions.labelled_tails`` takes them, with ``question_id`` and ``is_right``.
        annotations: rows of ``schemas.annotations``.
        taxonomy: the labels, in the order to show.
        confidence: coverage of the intervals.
        rules: what counts as naming.
        is_held_out: whether they are held-out thinkings, and not training traces.
    """
    of_what = "held-out thinkings before training" if is_held_out else "training traces"
    view, query = ("answers", {"variant": VANILLA}) if is_held_out else ("traces", {})
    tails = labelled_tails(traces, annotations, traces["is_right"], rules)
    lost, kept = (tails[tails["ending"] == ending] for ending in ("named_wrong", "named_right"))
    if lost.empty:
        return None
    shares = label_shares_after(tails, taxonomy, confidence)
    sentences = [
        f"{len(tails):,} labelled {of_what} name the gold answer; {len(lost):,} of them end wrong. Behind the last "
        f"mention these make {lost['after'].map(len).mean():.1f} steps in the mean"
        + (f", the {len(kept):,} right ones {kept['after'].map(len).mean():.1f}." if len(kept) else ".")
    ]
    for sign, what in ((1, "more often where the answer is wrong"), (-1, "more often where it is right")):
        moved = shares[(shares["low"] > 0) if sign > 0 else (shares["high"] < 0)]
        if len(moved):
            sides = ("wrong", "right")[::sign]
            told = [
                f"{row.label} ({' against '.join(f'{points(getattr(row, side))} %' for side in sides)})"
                for row in moved.sort_values("difference", ascending=sign < 0).itertuples()
            ]
            sentences.append(f"Behind it comes {what}: {listed(told)}.")
    return Block(
        title="What happens between the last mention and the answer",
        lead=f"Labels of the segments behind the last one that names the gold answer, in {of_what}. A longer way holds "
        "more of every label, so their shares of all steps behind it stand beside.",
        sentences=sentences,
        tables=[
            _share_table(shares, len(lost), len(kept), partial(case_address, view, **query)),
            *(table(tails, partial(case_address, view, **query)) for table in (path_table, first_step_table)),
        ],
        cases=hit_gap_cases(lost),
    )


def label_shares_after(tails: pd.DataFrame, taxonomy: Taxonomy, confidence: float) -> pd.DataFrame:
    """How often each label stands behind the last mention, where the answer is wrong and where it is right.

    Returns:
        A row a label that stands there at all: ``label``, the shares of traces ``wrong`` and ``right``, their
        ``difference`` with its interval ``low, high``, and the shares of steps ``of_wrong`` and ``of_right``.
    """
    rows = []
    is_wrong = (tails["ending"] == "named_wrong").to_numpy(bool)
    labels = [labels_in(path) for path in tails["after"]]
    steps = {
        side: [{*step.split(" + ")} for path in tails["after"][is_wrong == side] for step in path]
        for side in (True, False)
    }
    for label in taxonomy.labels:
        has = np.array([label in each for each in labels], dtype=float)
        if has.any():
            gap = _gap(tails, pd.Series(has, index=tails.index), confidence)
            right = has[~is_wrong].mean() if (~is_wrong).any() else np.nan
            of_steps = [np.mean([label in step for step in steps[side]]) if steps[side] else np.nan for side in steps]
            rows.append((label, has[is_wrong].mean(), right, *gap, *of_steps))
    columns = ["label", "wrong", "right", "difference", "low", "high", "of_wrong", "of_right"]
    return pd.DataFrame(rows, columns=columns)


def path_table(tails: pd.DataFrame, address: Callable[..., str]) -> ResultTable:
    """What follows the last mention, step by step: the commonest paths of traces that end wrong.

    Args:
        tails: what ``mentions.labelled_tails`` returns.
        address: of the cases, ``case_addresses.case_address`` of a view.
    """
    paths = tails.assign(path=tails["after"].map(path_text))
    counts = pd.crosstab(paths["path"], paths["ending"]).reindex(columns=list(ENDINGS[:2]), fill_value=0)
    counts = counts[counts["named_wrong"] > 0].sort_values("named_wrong", ascending=False, kind="stable")
    shown = counts.head(MOST_PATHS)
    rows = [[str(path), f"{row['named_wrong']:,}", f"{row['named_right']:,}"] for path, row in shown.iterrows()]
    steps = dict(zip(paths["path"], paths["after"], strict=True))
    addresses = [address(behind=_exactly(steps[str(path)])) for path in shown.index]
    if others := len(counts) - len(shown):
        rest = counts.tail(others).sum()
        rows.append([f"{others:,} other paths", f"{rest['named_wrong']:,}", f"{rest['named_right']:,}"])
        addresses.append("")
    columns = ["behind the last mention", "wrong", "right"]
    return LinkedTable.of(ResultTable(columns, rows, title="Paths from the last mention to the answer"), addresses)


def first_step_table(tails: pd.DataFrame, address: Callable[..., str]) -> ResultTable:
    """What the first step behind the last mention does.

    Args:
        tails: what ``mentions.labelled_tails`` returns.
        address: of the cases, ``case_addresses.case_address`` of a view.
    """
    steps = tails["after"].map(lambda path: path[0] if path else AT_ONCE).rename("step")
    counts = pd.crosstab(steps, tails["ending"]).reindex(columns=list(ENDINGS[:2]), fill_value=0)
    order = counts.sort_values(["named_wrong", "named_right"], ascending=False, kind="stable").head(MOST_PATHS)
    rows = [[str(step), f"{row['named_wrong']:,}", f"{row['named_right']:,}"] for step, row in order.iterrows()]
    addresses = [address(behind=f"= {STOP_NAME if step == AT_ONCE else step}") for step in order.index]
    columns = ["first step behind it", "wrong", "right"]
    return LinkedTable.of(ResultTable(columns, rows, title="The first step behind the last mention"), addresses)


def _exactly(path: Sequence[str]) -> str:
    """A path as the workbench finds it, each step with these labels and no others, as far as a table tells it."""
    return "= " + ARROW.join([*path[:MOST_STEPS], "…" if len(path) > MOST_STEPS else STOP_NAME])


def path_text(path: Sequence[str], most: int = MOST_STEPS) -> str:
    """A path of steps as a table shows it, its first steps if there are many.

    >>> path_text(("evaluation", "analogy + comparison")), path_text(()), path_text(("a", "b", "c", "d"))
    ('evaluation → analogy + comparison', '(the answer follows)', 'a → b → c → …')
    """
    return ARROW.join([*path[:most], *(["…"] if len(path) > most else [])]) or AT_ONCE


def hit_gap_cases(lost: pd.DataFrame) -> list[Case]:
    """One trace of each of the commonest paths, the first by its id: chosen by rule, not by hand."""
    paths = lost.assign(path=lost["after"].map(path_text)).sort_values("trace_id")
    common = paths["path"].value_counts(sort=False).sort_values(ascending=False, kind="stable").index[:MOST_CASES]
    first = paths.drop_duplicates("path").set_index("path")
    return [
        Case(
            str(first.loc[path, "question"]),
            cut_text(" / ".join(map(str, first.loc[path, "answers"]))),
            cut_text(str(first.loc[path, "mention"])),
            f"{first.loc[path, 'at']}{ARROW}{path_text(first.loc[path, 'after'], MOST_CASE_STEPS)}",
            cut_text(str(first.loc[path, "answer"])) or UNDEFINED,
        )
        for path in common
    ]


def _share_table(shares: pd.DataFrame, num_wrong: int, num_right: int, address: Callable[..., str]) -> ResultTable:
    rows, addresses = [], []
    for row in shares.sort_values("difference", ascending=False, kind="stable").itertuples():
        interval = (
            f"{points(row.difference, signed=True)} [{points(row.low, signed=True)}, {points(row.high, signed=True)}]"
        )
        told = UNDEFINED if np.isnan(row.difference) else interval
        addresses.append(address(behind=row.label))
        rows.append([row.label, points(row.wrong), points(row.right), told, points(row.of_wrong), points(row.of_right)])
    columns = ["label", f"wrong ({num_wrong:,}), %", f"right ({num_right:,}), %", "difference, points"]
    columns += ["of steps, wrong, %", "of steps, right, %"]
    title = "Traces with the label behind the last mention; intervals over questions, not corrected for their number"
    return LinkedTable.of(ResultTable(columns, rows, title=title), addresses)


def _gap(rows: pd.DataFrame, values: pd.Series, confidence: float) -> tuple[float, float, float]:
    """Wrong minus right, with an interval over questions."""
    is_wrong = (rows["ending"] == "named_wrong").to_numpy(bool)
    return question_gap(values.to_numpy(float), is_wrong, rows, confidence)

"""What became of answers (Fig. 5), and how the thinking of variants differs: length, repetition, labels, loops.

No difference is claimed whose interval includes 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mralign_core.evaluation.held_out_traces import VANILLA
from mralign_core.evaluation.mentions import ENDINGS, trace_paths
from mralign_core.evaluation.metrics import comparisons, order_variants, paired_shares
from mralign_core.evaluation.redrawn import AGAIN
from mralign_core.evaluation.thinking_habits import ANSWER_HABITS, answer_habits, find_cycle
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.case_addresses import case_address, shift_address
from mralign_core.reporting.parting_figures import (
    CLASS_TITLES,
    ENDING_TITLES,
    shift_bars,
    thinking_lengths,
    title_of_variant,
)
from mralign_core.reporting.report_block import (
    ARROW,
    BLOCK_RESAMPLES,
    Block,
    LinkedTable,
    judged_gap,
    listed,
    question_gap,
)
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_findings import points
from mralign_core.reporting.titles import UNDEFINED, variant_title


def shift_block(shifts: Sequence[dict[str, Any]], redrawn: Sequence[dict[str, Any]]) -> Block | None:
    """What became of answers, by what they were with think-on (Fig. 5); None where nothing was compared with it.

    Args:
        shifts: rows of what ``metrics.consistency_shifts`` returns.
        redrawn: rows of what ``redrawn.redrawn_shifts`` returns.
    """
    if not shifts:
        return None
    chance = (
        "“Think on, drawn again” is the next draw of the same question by the same model: traffic that training has no "
        "part in. It is more than the variants would have unchanged, which share think on's random numbers."
        if redrawn
        else "Some of this traffic is regression to the mean: think on, drawn again, would not repeat its classes."
    )
    return Block(
        title="What became of the answers that were right, inconsistent or wrong before",
        lead=f"Thinking and answer both name the gold answer, exactly one does (the hit gap), or neither. {chance}",
        sentences=shift_sentences(shifts, redrawn),
        chart="shifts",
        figure=shift_bars([*redrawn, *shifts]),
        caption="Each bar is all answers that had this class with think on; its colours, what they are afterwards.",
        tables=[shift_table([*redrawn, *shifts])],
    )


def shift_sentences(shifts: Sequence[dict[str, Any]], redrawn: Sequence[dict[str, Any]]) -> list[str]:
    """Of the last variant, how many inconsistent answers became right, and how many right ones did not stay so."""
    last = shifts[-1]["variant"]
    told = []
    for before, after, text in (
        ("inconsistent", "both_correct", "inconsistent answers became right"),
        ("both_correct", "both_correct", "answers that were right stayed so"),
        ("both_wrong", "both_correct", "wrong ones became right"),
    ):
        row = _shift(shifts, last, before)
        if row is None or not row["num_answers"]:
            continue
        share = f"{points(row[after] / row['num_answers'])} %{_again(redrawn, before, after)}"
        told.append(f"{row[after]:,} of {row['num_answers']:,} {text} ({share})")
    return [f"{variant_title(last)}: {'; '.join(told)}."] if told else []


def _again(redrawn: Sequence[dict[str, Any]], before: str, after: str) -> str:
    row = _shift(redrawn, redrawn[0]["variant"], before) if redrawn else None
    return f"; drawn again, {points(row[after] / row['num_answers'])} %" if row and row["num_answers"] else ""


def _shift(shifts: Sequence[dict[str, Any]], variant: str, before: str) -> dict[str, Any] | None:
    return next((row for row in shifts if row["variant"] == variant and row["before"] == before), None)


def shift_table(shifts: Sequence[dict[str, Any]]) -> ResultTable:
    """Fig. 5 in numbers."""
    rows, addresses = [], []
    for row in shifts:
        total = row["num_answers"]
        moved = [
            f"{row[name]:,} ({points(row[name] / total)} %)" if total else f"{row[name]:,}" for name in CLASS_TITLES
        ]
        rows.append([title_of_variant(row["variant"]), CLASS_TITLES[row["before"]], f"{total:,}", *moved])
        addresses.append("" if row["variant"] == AGAIN else shift_address(row["variant"], row["before"]))
    columns = ["variant", "before (think on)", "answers", *(f"{title} after" for title in CLASS_TITLES.values())]
    title = "Answers by what they were before and are after"
    return LinkedTable.of(ResultTable(columns, rows, ["before (think on)"], title), addresses)


def habit_block(scores: pd.DataFrame, confidence: float) -> Block | None:
    """How long variants think and whether they repeat themselves; None where none does think.

    Args:
        scores: rows of ``schemas.scores``.
        confidence: coverage of the intervals.
    """
    habits = answer_habits(scores)
    if habits.empty:
        return None
    variants = order_variants(list(habits["variant"].unique()))
    differences = paired_shares(
        habits, ANSWER_HABITS, num_resamples=BLOCK_RESAMPLES, confidence=confidence, rng=np.random.default_rng(0)
    )
    return Block(
        title="How long the model thinks",
        lead="Tokens of thinking and answer together, segments of the thinking, and whether a segment repeats the "
        "words of one before it. Answers of all sets with EM_t.",
        sentences=habit_sentences(differences),
        chart="lengths",
        figure=thinking_lengths(habits, variants),
        caption="Means by outcome. Where outcomes differ in length, a shift of outcomes moves the mean by itself.",
        tables=[_habit_table(habits, variants), *_habit_differences(differences)],
    )


def habit_sentences(differences: pd.DataFrame) -> list[str]:
    """What training changed, a sentence a variant.

    Args:
        differences: what ``metrics.paired_shares`` returns of the :data:`ANSWER_HABITS`.
    """
    sentences = []
    for variant, baseline in comparisons(list({*differences["variant"], *differences["baseline"]})):
        if baseline != "on":
            continue
        rows = differences[(differences["variant"] == variant) & (differences["baseline"] == baseline)].set_index(
            "metric"
        )
        told = [
            _length_moved(rows.loc["num_tokens"], "tokens"),
            _length_moved(rows.loc["num_segments"], "segments"),
            _repeats_moved(rows.loc["repeats"]),
        ]
        sentences.append(f"{variant_title(variant)} against {variant_title(baseline)}: {'; '.join(told)}.")
    return sentences


def _length_moved(row: pd.Series, unit: str) -> str:
    interval = f"[{_signed(row['low'])}, {_signed(row['high'])}]"
    if row["low"] <= 0 <= row["high"]:
        return f"no measurable change in {unit} ({_signed(row['difference'])} {interval})"
    return f"{abs(row['difference']):.1f} {unit} {'more' if row['difference'] > 0 else 'fewer'} an answer {interval}"


def _repeats_moved(row: pd.Series) -> str:
    interval = f"[{points(row['low'], signed=True)}, {points(row['high'], signed=True)}]"
    if row["low"] <= 0 <= row["high"]:
        difference = points(row["difference"], signed=True)
        return f"no measurable change in how many repeat themselves ({difference} {interval} points)"
    more = "more" if row["difference"] > 0 else "fewer"
    return f"{points(abs(row['difference']))} points {more} repeat themselves {interval}"


def _signed(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _habit_table(habits: pd.DataFrame, variants: Sequence[str]) -> ResultTable:
    rows, addresses = [], []
    for variant in variants:
        own = habits[habits["variant"] == variant]
        for ending in ("", *ENDINGS):
            found = own if not ending else own[own["ending"] == ending]
            if found.empty:
                continue
            numbers = [
                f"{found['num_tokens'].mean():.1f}",
                f"{found['num_segments'].mean():.1f}",
                points(found["repeats"].mean()),
            ]
            rows.append([variant_title(variant), ENDING_TITLES.get(ending, "all"), f"{len(found):,}", *numbers])
            thinking = {"ending": ending} if ending else {"segments_from": "0"}
            addresses.append(case_address("answers", variant=variant, **thinking))
    columns = ["variant", "outcome", "answers", "tokens", "segments", "repeat themselves, %"]
    return LinkedTable.of(ResultTable(columns, rows, ["outcome"], "Means by variant and outcome"), addresses)


def _habit_differences(differences: pd.DataFrame) -> list[ResultTable]:
    if differences.empty:
        return []
    rows: list[list[str]] = []
    for (variant, baseline), members in differences.groupby(["variant", "baseline"], sort=False):
        of = members.set_index("metric")
        cells = [_difference_cell(of.loc[name], 100.0 if name == "repeats" else 1.0) for name in ANSWER_HABITS]
        rows.append([f"{variant_title(str(variant))} − {variant_title(str(baseline))}", *cells])
    columns = ["difference", "tokens", "segments", "repeat themselves, points"]
    return [ResultTable(columns, rows, title="Paired differences, with intervals over questions")]


def _difference_cell(row: pd.Series, scale: float) -> str:
    low, high = (_signed(scale * row[name]) for name in ("low", "high"))
    return f"{_signed(scale * row['difference'])} [{low}, {high}]"


def move_habit_block(
    traces: pd.DataFrame, annotations: pd.DataFrame, taxonomy: Taxonomy, confidence: float
) -> Block | None:
    """Whether training changed how often each label is given and whether the thinking goes in circles; None unless
    think-on and an aligned variant both have labels.

    Args:
        traces: rows of ``schemas.held_out_traces``.
        annotations: rows of ``schemas.annotations``, of these.
        taxonomy: the labels.
        confidence: coverage of the intervals.
    """
    paths = trace_paths(annotations)
    own = traces[traces["trace_id"].isin(list(paths))]
    variants = [variant for variant in order_variants(list(own["variant"].unique())) if variant != VANILLA]
    if not variants or VANILLA not in set(own["variant"]):  # there is nothing to compare with
        return None
    own = own.assign(path=own["trace_id"].map(paths))
    own = own.assign(cycle=own["path"].map(find_cycle))
    mixes = {variant: label_changes(own, taxonomy, confidence, variant) for variant in variants}
    return Block(
        title="What the thinking does, before and after",
        lead="Steps with each label in a held-out thinking, and thinkings that loop: two or more different moves made "
        "twice in a row in the same order.",
        sentences=[
            *(_mix_sentence(mix, variant) for variant, mix in mixes.items()),
            *(_loop_sentence(own, variant, confidence) for variant in variants),
        ],
        has_cases=False,
        tables=[*(_mix_table(mix, variant) for variant, mix in mixes.items()), _loop_table(own, [VANILLA, *variants])],
    )


def label_changes(traces: pd.DataFrame, taxonomy: Taxonomy, confidence: float, variant: str) -> pd.DataFrame:
    """Mean steps of a thinking with each label, before and after, and the difference with its interval.

    Args:
        traces: rows of ``schemas.held_out_traces`` with a ``path`` each.
        taxonomy: the labels.
        confidence: coverage of the intervals.
        variant: the aligned one.

    Returns:
        A row a label: ``label, before, after, difference, low, high``.
    """
    rows = traces[traces["variant"].isin([variant, VANILLA])]
    is_after = (rows["variant"] == variant).to_numpy(bool)
    counts = pd.DataFrame([Counter(label for step in path for label in step.split(" + ")) for path in rows["path"]])
    found = []
    for label in taxonomy.labels:
        if label in counts:
            values = counts[label].fillna(0).to_numpy(float)
            gap = question_gap(values, is_after, rows, confidence)
            found.append((label, values[~is_after].mean(), values[is_after].mean(), *gap))
    return pd.DataFrame(found, columns=["label", "before", "after", "difference", "low", "high"])


def _mix_sentence(mix: pd.DataFrame, variant: str) -> str:
    moved = mix[(mix["low"] > 0) | (mix["high"] < 0)]
    order = moved["difference"].abs().sort_values(ascending=False, kind="stable").index
    told = [
        f"{'more' if row.difference > 0 else 'less'} {row.label} ({row.before:.2f} → {row.after:.2f} steps)"
        for row in moved.loc[order].itertuples()
    ]
    name = variant_title(variant)
    return f"{name} against think on: {listed(told) or 'no label is measurably rarer or commoner'}."


def _mix_table(mix: pd.DataFrame, variant: str) -> ResultTable:
    rows = [
        [
            row.label,
            f"{row.before:.2f}",
            f"{row.after:.2f}",
            f"{_signed(row.difference, 2)} [{_signed(row.low, 2)}, {_signed(row.high, 2)}]",
        ]
        for row in mix.itertuples()
    ]
    columns = ["label", "think on", variant_title(variant), "difference"]
    return ResultTable(
        columns, rows, title="Steps of a thinking with each label; intervals are not corrected for their number"
    )


def _loop_sentence(traces: pd.DataFrame, variant: str, confidence: float) -> str:
    rows = traces[traces["variant"].isin([variant, VANILLA])]
    is_after = (rows["variant"] == variant).to_numpy(bool)
    loops = (rows["cycle"].map(len) > 0).to_numpy(float)
    gap = question_gap(loops, is_after, rows, confidence)
    shares = (
        f"{points(loops[~is_after].mean())} % of thinkings loop before and {points(loops[is_after].mean())} % after"
    )
    return f"{variant_title(variant)}: {shares}: {judged_gap(gap, 'no measurable difference')}"


def _loop_table(traces: pd.DataFrame, variants: Sequence[str]) -> ResultTable:
    rows, addresses = [], []
    for variant in variants:
        for is_right, outcome in ((True, "answered right"), (False, "answered wrong")):
            own = traces[(traces["variant"] == variant) & (traces["is_right"].astype(bool) == is_right)]
            cycles = own["cycle"][own["cycle"].map(len) > 0].map(ARROW.join).value_counts()
            common = f"{cycles.index[0]} ({cycles.iloc[0]:,})" if len(cycles) else UNDEFINED
            share = points(cycles.sum() / len(own)) if len(own) else UNDEFINED
            rows.append([variant_title(variant), outcome, f"{len(own):,}", share, common])
            hit = "right" if is_right else "wrong"
            addresses.append(case_address("answers", variant=variant, hit=hit, loops="yes"))
    columns = ["variant", "outcome", "thinkings", "loop, %", "commonest cycle"]
    return LinkedTable.of(ResultTable(columns, rows, ["outcome", "commonest cycle"], "Thinkings that loop"), addresses)

"""The figures of where thinking and answer part: mentions of the gold answer (Fig. 1 of arXiv 2510.24794), what became
of answers by what they were before (Fig. 5), and how long variants think.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mralign_core.evaluation.metrics import CONSISTENCY
from mralign_core.evaluation.redrawn import AGAIN
from mralign_core.method import FloatArray
from mralign_core.reporting.case_addresses import FIGURE_CASES, case_address, shift_address
from mralign_core.reporting.style import FAINT, INK, MUTED, WIDTH, ink_on, styled, with_alt_text
from mralign_core.reporting.titles import variant_title

NUM_BINS = 10
"""Tenths of the thinking."""
MOST_AFTER = 6
"""Segments behind the last mention's that are counted one by one."""
FEWEST_SHOWN = 5
"""Answers whose mean length is shown."""
ENDING_TITLES = {
    "named_right": "named, answered right",
    "named_wrong": "named, answered wrong",
    "unnamed_right": "not named, answered right",
    "unnamed_wrong": "not named, answered wrong",
}
ENDING_COLOURS = {
    "named_right": "#0072b2",
    "named_wrong": "#d55e00",
    "unnamed_right": "#7a9cc6",
    "unnamed_wrong": "#9aa3ad",
}
CLASS_TITLES = {"both_correct": "both right", "inconsistent": "inconsistent", "both_wrong": "both wrong"}
CLASS_COLOURS = {"both_correct": "#0072b2", "inconsistent": "#e69f00", "both_wrong": "#8a93a0"}
"""What thinking and answer did → its colour: Fig. 5."""
_NAMED = ("named_right", "named_wrong")
_PLACES = {"first": "first mention", "last": "last mention"}
_LEAST_TOLD = 0.07
"""Smallest share whose number stands in its bar."""


def title_of_variant(variant: str) -> str:
    """A variant as people call it; think-on compared with itself is what chance does."""
    return "think on, drawn again" if variant == AGAIN else variant_title(variant)


@styled
def mention_places(mentions: pd.DataFrame, variant: str = "on") -> Figure:
    """Where the thinking names the gold answer first and last, and how much of it follows, by outcome.

    Args:
        mentions: what ``mentions.answer_mentions`` returns.
        variant: whose answers.
    """
    named = mentions[(mentions["variant"] == variant) & mentions["last"].notna()]
    figure = Figure(figsize=(WIDTH, 3.5))
    first, last, after = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    told = [f"Where the thinking of {title_of_variant(variant)} names the gold answer, by whether the answer is right."]
    for axes, (column, title) in zip((first, last), _PLACES.items(), strict=True):
        for offset, ending in zip((-0.2, 0.2), _NAMED, strict=True):
            values = named.loc[named["ending"] == ending, column].to_numpy(float)
            _tenths(
                axes, values, ending, offset, partial(case_address, "answers", variant=variant, ending=ending), column
            )
            told.append(_told_places(values, ending, title))
        axes.set_title(title)
        axes.set_xticks([-0.5, 4.5, 9.5], ["begin", "middle", "end"])
        axes.set_xlabel("of the thinking, by characters, in tenths")
    first.set_ylabel("share of these answers, %")
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8.5)
    told.append(_segments_after(after, named, variant))
    top = max(axes.get_ylim()[1] for axes in (first, last, after))
    for axes in (first, last, after):
        axes.set_ylim(0, top)
    return with_alt_text(figure, *told)


def _tenths(
    axes: Axes, values: FloatArray, ending: str, offset: float, address: Callable[..., str], column: str
) -> None:
    shares = 100 * in_tenths(values)
    label = f"{ENDING_TITLES[ending]} ({len(values):,})"
    bars = axes.bar(np.arange(NUM_BINS) + offset, shares, 0.4, color=ENDING_COLOURS[ending], label=label)
    for place, (bar, share) in enumerate(zip(bars, shares, strict=True)):
        bar.set_gid(f"tip:{ENDING_TITLES[ending]}: {share:.0f} % in tenth {place + 1}")
        if share:
            start, end = (f"{100 * edge / NUM_BINS:g}" for edge in (place, place + 1))
            bar.set_url(FIGURE_CASES + address(**{f"{column}_from": start, f"{column}_to": end}))


def in_tenths(places: FloatArray) -> FloatArray:
    """The share of places, from 0 to 1, in each tenth, (NUM_BINS,); of none, zeros.

    A place at an edge is in the tenth that begins there, as in the lists that bars lead to; the end is in the last.

    >>> in_tenths(np.array([3 / 10, 6 / 10, 7 / 10])).nonzero()[0].tolist()
    [3, 6, 7]
    >>> in_tenths(np.array([0.0, 0.05, 0.95, 1.0])).tolist()
    [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    """
    edges = np.arange(NUM_BINS + 1) / NUM_BINS  # numpy's own have 0.30000000000000004
    counts = np.histogram(places, bins=edges)[0]
    shares: FloatArray = counts / max(counts.sum(), 1)
    return shares


def _told_places(values: FloatArray, ending: str, title: str) -> str:
    if not len(values):
        return f"{title.capitalize()} where {ENDING_TITLES[ending]}: no answer."
    shares = in_tenths(values)
    most = int(shares.argmax())
    return (
        f"{title.capitalize()} where {ENDING_TITLES[ending]} ({len(values):,} answers): median "
        f"{100 * np.median(values):.0f} % of the way, most often in tenth {most + 1} ({100 * shares[most]:.0f} %)."
    )


def _segments_after(axes: Axes, named: pd.DataFrame, variant: str) -> str:
    """How many segments follow the last mention's; returns it in words."""
    told = []
    for offset, ending in zip((-0.2, 0.2), _NAMED, strict=True):
        values = named.loc[named["ending"] == ending, "segments_after"].to_numpy(float)
        counts = np.bincount(np.minimum(values, MOST_AFTER).astype(int), minlength=MOST_AFTER + 1)
        shares = 100 * counts / max(len(values), 1)
        bars = axes.bar(np.arange(MOST_AFTER + 1) + offset, shares, 0.4, color=ENDING_COLOURS[ending])
        for after, (bar, share) in enumerate(zip(bars, shares, strict=True)):
            bar.set_gid(f"tip:{ENDING_TITLES[ending]}: {share:.0f} %")
            if share:
                most = str(after) if after < MOST_AFTER else ""
                asked = {"variant": variant, "ending": ending, "after_from": str(after), "after_to": most}
                bar.set_url(FIGURE_CASES + case_address("answers", **asked))
        if len(values):
            told.append(f"{100 - shares[0]:.0f} % where {ENDING_TITLES[ending]}, {values.mean():.1f} in the mean")
    axes.set_title("how far it goes on")
    axes.set_xticks(range(MOST_AFTER + 1), [*map(str, range(MOST_AFTER)), f"{MOST_AFTER}+"])
    axes.set_xlabel("segments behind the last mention's")
    return f"A segment or more follows the last mention's in {' and in '.join(told)}." if told else ""


@styled
def shift_bars(shifts: Sequence[Mapping[str, object]]) -> Figure:
    """What became of answers that were both right, inconsistent and both wrong with think-on, by variant (Fig. 5).

    Args:
        shifts: rows of what ``metrics.consistency_shifts`` returns, and of ``redrawn.redrawn_shifts``.
    """
    before = [name for name in CONSISTENCY if any(row["before"] == name for row in shifts)]
    variants = list(dict.fromkeys(str(row["variant"]) for row in shifts))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * (len(variants) + 0.8) * len(before)))
    axes = figure.subplots()
    place, ticks, told = 0.0, [], []
    for name in before:
        rows = [row for row in shifts if row["before"] == name]
        axes.text(0, place - 0.7, _heading(name, rows), fontsize=9.5, fontweight="bold", va="center")
        for row in rows:
            told.append(_stack(axes, place, row))
            ticks.append((place, title_of_variant(str(row["variant"]))))
            place += 1
        place += 1.15
    axes.set_yticks([at for at, _ in ticks], [title for _, title in ticks])
    axes.set_ylim(place - 1.4, -1.1)
    axes.set_xlim(0, 100)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of these answers, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8.5)
    return with_alt_text(figure, "Stacked bars of what answers became, by what they were with think-on.", *told)


def _heading(name: str, rows: Sequence[Mapping[str, object]]) -> str:
    counts = {int(str(row["num_answers"])) for row in rows}
    return f"{CLASS_TITLES[name]} before: {' or '.join(f'{count:,}' for count in sorted(counts))} answers"


def _stack(axes: Axes, place: float, row: Mapping[str, object]) -> str:
    """One bar; returns its numbers in words."""
    total = int(str(row["num_answers"]))
    start, parts = 0.0, []
    for name, title in CLASS_TITLES.items():
        count = int(str(row[name]))
        share = 100 * count / max(total, 1)
        is_first = title not in axes.get_legend_handles_labels()[1]
        bar = axes.barh(
            place, share, left=start, height=0.74, color=CLASS_COLOURS[name], label=f"{title}" if is_first else None
        )
        bar[0].set_gid(f"tip:{title}: {count:,} of {total:,}")
        if row["variant"] != AGAIN:
            bar[0].set_url(FIGURE_CASES + shift_address(str(row["variant"]), str(row["before"]), name))
        if share >= 100 * _LEAST_TOLD:
            ink = ink_on(CLASS_COLOURS[name])
            axes.text(start + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
        parts.append(f"{title} {count:,}")
        start += share
    if not total:
        axes.text(1, place, "no such answer", va="center", fontsize=8, color=MUTED)
    what = CLASS_TITLES[str(row["before"])]
    return f"{title_of_variant(str(row['variant']))}, of {total:,} {what} before: {', '.join(parts)}."


@styled
def thinking_lengths(habits: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """Mean tokens and segments of each variant's answers, all together and by outcome.

    Args:
        habits: what ``thinking_habits.answer_habits`` returns.
        variants: those to show, in this order.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(variants)))
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"num_tokens": "tokens of an answer", "num_segments": "segments of its thinking"}
    told = []
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for place, variant in enumerate(variants):
            rows = habits[habits["variant"] == variant]
            means = rows.groupby("ending")[column].agg(["mean", "size"]).query(f"size >= {FEWEST_SHOWN}")["mean"]
            ends = [*means, rows[column].mean()]
            axes.plot([min(ends), max(ends)], [place, place], color=FAINT, lw=4, zorder=0)
            for ending, mean in means.items():
                size = 20 + 110 * (rows["ending"] == ending).mean()
                dot = axes.scatter(mean, place, s=size, color=ENDING_COLOURS[str(ending)], zorder=2, lw=0)
                dot.set_gid(f"tip:{ENDING_TITLES[str(ending)]}: {mean:.1f}")
                dot.set_urls([FIGURE_CASES + case_address("answers", variant=variant, ending=str(ending))])
            axes.plot(rows[column].mean(), place, marker="|", ms=15, mew=2, color=INK, zorder=3)
            parts = [f"{ENDING_TITLES[str(ending)]} {mean:.1f}" for ending, mean in means.items()]
            told.append(f"{title_of_variant(variant)}, {title}: mean {rows[column].mean():.1f} ({', '.join(parts)}).")
        axes.set_title(title)
        axes.set_xlabel("mean; the bar is of all answers, a larger dot of more of them")
        axes.set_ylim(len(variants) - 0.5, -0.5)
    panels[0].set_yticks(range(len(variants)), [title_of_variant(variant) for variant in variants])
    seen = [ending for ending in ENDING_TITLES if (habits["ending"] == ending).any()]
    handles = [
        panels[0].scatter([], [], s=40, color=ENDING_COLOURS[ending], label=ENDING_TITLES[ending]) for ending in seen
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(seen), fontsize=8.5)
    return with_alt_text(figure, "Mean length of answers by variant and outcome.", *told)

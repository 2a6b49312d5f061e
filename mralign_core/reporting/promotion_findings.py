"""What the gate decided, in words and in a table."""

from __future__ import annotations

from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.titles import metric_title
from mralign_core.retraining.promotion import BASE_MODEL, Promotion
from mralign_core.versions.aliases import version_name

VERDICT_WORDS = {
    "PROMOTE": "takes the champion's place",
    "HOLD": "is held: the champion stays",
    "REJECT": "is rejected",
}


def promotion_sentence(promotion: Promotion) -> str:
    """Who was compared with whom, and what follows."""
    against = version_name(promotion.champion) if promotion.champion else BASE_MODEL
    what = VERDICT_WORDS[promotion.verdict]
    return f"{promotion.verdict}: {version_name(promotion.challenger)}, compared with {against}, {what}"


def promotion_markdown(promotion: Promotion) -> str:
    """The decision, its reasons and the figures, as Markdown."""
    reasons = "\n".join(f"- {reason}" for reason in promotion.reasons)
    parts = [f"**{promotion_sentence(promotion)}.**", reasons]
    if promotion.gains:
        parts.append(gains_table(promotion).to_markdown())
        parts.append(
            f"Gain: positive is better, in points; the bounds are one-sided. These held-out questions had decided "
            f"{promotion.num_comparisons} comparison(s) before this one."
        )
    return "\n\n".join(parts)


def gains_table(promotion: Promotion) -> ResultTable:
    """The challenger's gains by part and metric, in percent and points."""
    columns = ["part", "metric", "champion", "challenger", "gain", "bounds", "p (better)", "questions"]
    rows = [
        [
            str(row["part"]),
            metric_title(row["metric"], (row["metric"],)),
            f"{100 * row['before']:.1f}",
            f"{100 * row['after']:.1f}",
            f"{100 * row['gain']:+.1f}",
            f"{100 * row['low']:+.1f}, {100 * row['high']:+.1f}",
            f"{row['p_gain']:.2g}",
            f"{row['num_questions']:,}",
        ]
        for row in promotion.gains
    ]
    return ResultTable(columns, rows, ["metric"])

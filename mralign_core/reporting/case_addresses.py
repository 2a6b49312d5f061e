"""Where in the workbench the cases behind a number of the report are, as ``traces?label=retrieval``.

The report is the same wherever it is made, and is opened as a file too, where no workbench is. So it has these in
``data-cases`` of anchors without a target, which are plain text; the server that shows the page makes links of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from mralign_core.method.taxonomy import Taxonomy
from mralign_core.reporting.titles import VARIANT_TITLES
from mralign_core.schemas.annotations import RULES
from mralign_core.schemas.outcomes import DRAW_OUTCOMES

FIGURE_CASES = "cases:"
"""Begins the URL of what is drawn in a figure; :func:`~.style.to_svg` puts it where a page has it."""
_SHIFTED = {"both_correct": "both", "inconsistent": "gap", "both_wrong": "neither"}


def case_address(view: str, **query: str) -> str:
    """A view of the workbench, and what it is to show; empty values are left out.

    >>> case_address("answers", variant="kto", hit="thinking", source="")
    'answers?variant=kto&hit=thinking'
    """
    return f"{view}?{urlencode({name: value for name, value in query.items() if value})}"


def move_address(source: str, target: str, polarity: str = "") -> str:
    """The traces that make a move from one label to another.

    >>> move_address("<start>", "framing", "positive")
    'traces?polarity=positive&pattern=%3Cstart%3E+%E2%86%92+framing'
    """
    return case_address("traces", polarity=polarity, pattern=f"{source} → {target}")


def shift_address(variant: str, before: str, after: str = "") -> str:
    """The answers of a variant that were of one class of ``CONSISTENCY`` with think-on, and are of another.

    >>> shift_address("kto", "inconsistent", "both_correct")
    'answers?variant=kto&against=on&hit_before=gap&hit=both'
    """
    return case_address(
        "answers", variant=variant, against="on", hit_before=_SHIFTED[before], hit=_SHIFTED.get(after, "")
    )


def row_address(
    text: str, taxonomy: Taxonomy, variants: Sequence[str] = tuple(VARIANT_TITLES), of_answers: Mapping[str, str] = {}
) -> str:
    """The cases of a table's row, by what it is called: a variant, a comparison, a label, a move, a rule, an outcome.

    Empty where it is called something else. ``of_answers`` says which answers the table has, of a stratum for one.

    >>> from mralign_core.method.taxonomy import PAPER_TAXONOMY
    >>> row_address("MR-ALIGN − KTO", PAPER_TAXONOMY), row_address("unclosed thinking", PAPER_TAXONOMY)
    ('answers?variant=mr_align&against=kto&flip=any', 'draws?outcome=unclosed_thinking')
    >>> row_address("retrieval → analogy", PAPER_TAXONOMY), row_address("all questions", PAPER_TAXONOMY)
    ('traces?pattern=retrieval+%E2%86%92+analogy', '')
    """
    named = {VARIANT_TITLES.get(name, name): name for name in variants}
    parts = re.split(r" (?:−|→) ", text)
    if len(parts) == 2 and set(parts) <= named.keys():
        return case_address("answers", variant=named[parts[0]], against=named[parts[1]], flip="any", **of_answers)
    if len(parts) == 2 and set(parts) <= set(taxonomy.state_names):
        return move_address(*parts)
    if text in named:
        return case_address("answers", variant=named[text], **of_answers)
    if text in taxonomy.labels:
        return case_address("traces", label=text)
    if text in RULES:
        return case_address("traces", rule=text)
    outcome = text.replace(" ", "_")
    return case_address("draws", outcome=outcome) if outcome in DRAW_OUTCOMES else ""

"""Asking a person whether a model is promoted, at the terminal: an embedded server has no page that shows the form."""

from __future__ import annotations

import select
import sys
from typing import TextIO

from rich.markup import escape

from flows.commands.results import console
from flows.commands.versions import user_name
from flows.weekly_retrain import Approval
from mralign_core.config import RunConfig
from mralign_core.reporting.promotion_findings import promotion_sentence
from mralign_core.retraining.promotion import Promotion
from mralign_core.versions.aliases import version_name


def ask_at_terminal(config: RunConfig, promotion: Promotion) -> Approval:
    """What the person at the terminal says, within ``retrain.ask_timeout_h``; where nobody can be there, no, at once.

    A no stands until the data, the gate or the champion change, so its note names the command that promotes all the
    same.
    """
    name = version_name(promotion.challenger)
    command = f"`mralign promote {name}` does it by hand"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Approval(note=f"no terminal to ask at, and an embedded server shows no form; {command}")
    for line in (promotion_sentence(promotion), *(f"- {reason}" for reason in promotion.reasons)):
        console.print(escape(line), highlight=False, soft_wrap=True)
    timeout_s = 3600 * config.retrain.ask_timeout_h
    answer = _line(f"Have {config.retrain.alias} name {name}? [y/N] ", sys.stdin, timeout_s)
    if not answer:
        within = f" within {config.retrain.ask_timeout_h:g} hours" if answer is None else ""
        return Approval(note=f"nobody answered{within}; {command}")
    note = _line("Why, for the alias' history: ", sys.stdin, timeout_s) or ""
    is_yes = answer.strip().lower() in ("y", "yes")
    return Approval(approve=is_yes, by=user_name(), note=note.strip() or ("" if is_yes else command))


def _line(prompt: str, stream: TextIO, timeout_s: float) -> str | None:
    """A line that is typed, with its end; empty where the input ends, None where nothing is typed within the time."""
    console.print(escape(prompt), end="", highlight=False, soft_wrap=True)
    ready, _, _ = select.select([stream], [], [], timeout_s)
    return stream.readline() if ready else None

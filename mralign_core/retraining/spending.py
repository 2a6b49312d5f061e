"""What all runs on a store paid in a month: the accounts of everything that was asked of language models."""

from __future__ import annotations

import re
from datetime import datetime

from mralign_core.errors import BudgetError
from mralign_core.llm.ledger import month_of, read_months
from mralign_core.storage import ArtifactStore

LEDGERS = "ledgers"
_RECORD = re.compile(r"(.+)\.json")


def paid_in_month_usd(store: ArtifactStore, when: datetime) -> float:
    """Dollars that all runs on a store paid, or may be billed, in the calendar month of a moment.

    Args:
        store: where their accounts are.
        when: in UTC.
    """
    month = month_of(when)
    names = filter(None, map(_RECORD.fullmatch, sorted(store.files.sizes(f"records/{LEDGERS}"))))
    return sum(read_months(store.get_json(f"{LEDGERS}/{name[1]}")).get(month, 0.0) for name in names)


def check_month(store: ArtifactStore, ceiling_usd: float | None, when: datetime) -> None:
    """Refuse to begin what may cost money when the month's ceiling is reached.

    Raises:
        BudgetError: it is; says what was spent.
    """
    if ceiling_usd is None:
        return
    spent = paid_in_month_usd(store, when)
    if spent >= ceiling_usd:
        raise BudgetError(
            f"{spent:.2f} dollars were paid in {month_of(when)} by the runs on {store.root_uri}, and "
            f"retrain.budget_usd_a_month is {ceiling_usd:g}: wait for the next month, or raise it"
        )

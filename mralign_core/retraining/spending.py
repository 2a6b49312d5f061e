"""What all runs on a store paid in a month: the accounts of everything that was asked of language models."""

from __future__ import annotations

import re
from datetime import datetime

from mralign_core.errors import BudgetError, DataError
from mralign_core.llm.ledger import committed_by_month, month_of
from mralign_core.storage import ArtifactStore

LEDGERS = "ledgers"
_RECORD = re.compile(r"(.+)\.json")


def paid_in_month_usd(store: ArtifactStore, when: datetime) -> float:
    """Dollars that all runs on a store paid, or may be billed, in the calendar month of a moment.

    What runs before this was counted by month had paid is in none.

    Args:
        store: where their accounts are.
        when: in UTC.

    Raises:
        DataError: an account is damaged, so that nobody can tell.
    """
    month, total = month_of(when), 0.0
    for match in filter(None, map(_RECORD.fullmatch, sorted(store.files.sizes(f"records/{LEDGERS}")))):
        record = store.get_json(f"{LEDGERS}/{match[1]}")
        if record is None:
            raise DataError(
                f"the account records/{LEDGERS}/{match[0]} in {store.root_uri} is damaged, and what it paid counts "
                "against retrain.budget_usd_a_month: restore it, or remove it to forget what it paid"
            )
        total += committed_by_month(record).get(month, 0.0)
    return total


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

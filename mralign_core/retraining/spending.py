"""What all runs on a store paid in a month: the accounts of everything that was asked of language models."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from mralign_core.errors import BudgetError, DataError
from mralign_core.llm.ledger import committed_by_month, month_of
from mralign_core.storage import ArtifactStore

LEDGERS = "ledgers"


def account_names(store: ArtifactStore) -> list[str]:
    """The names of all accounts, as of records; a name ends in that of the run that paid."""
    files = sorted(store.files.sizes(f"records/{LEDGERS}"))
    return [f"{LEDGERS}/{file.removesuffix('.json')}" for file in files if file.endswith(".json")]


def paid_by_month_usd(store: ArtifactStore) -> Counter[str]:
    """Calendar month (UTC) → dollars that all runs on a store paid, or may be billed, in it.

    What runs before this was counted by month had paid is in none.

    Args:
        store: where their accounts are.

    Raises:
        DataError: an account is damaged, so that nobody can tell.
    """
    paid: Counter[str] = Counter()
    for name in account_names(store):
        record = store.get_json(name)
        if record is None:
            raise DataError(
                f"the account records/{name}.json in {store.root_uri} is damaged, and what it paid counts "
                "against retrain.budget_usd_a_month: restore it, or remove it to forget what it paid"
            )
        paid.update(committed_by_month(record))
    return paid


def check_month(store: ArtifactStore, ceiling_usd: float | None, when: datetime) -> None:
    """Refuse to begin what may cost money when the month's ceiling is reached.

    Raises:
        BudgetError: it is; says what was spent.
    """
    if ceiling_usd is None:
        return
    month = month_of(when)
    spent = paid_by_month_usd(store)[month]
    if spent >= ceiling_usd:
        raise BudgetError(
            f"{spent:.2f} dollars were paid in {month} by the runs on {store.root_uri}, and "
            f"retrain.budget_usd_a_month is {ceiling_usd:g}: wait for the next month, or raise it"
        )

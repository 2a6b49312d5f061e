"""What requests cost: a ledger by model and run that survives the process, and a ceiling that is never crossed.

Before an attempt is sent, the most it can cost is set aside; when its reply is there, its price takes that place. What
was set aside when a process was killed, and for an attempt whose reply was lost, counts as spent, because the provider
may have billed it: the ceiling holds over crashes and reruns.

It holds over runs at the same time too, each with a record of its own: what is set aside is written first, and then the
records of the others are read. Of two runs that do so at once, at least one sees what both have set aside, and takes
its own back where that is too much. What can still cross a ceiling is a provider that bills more tokens than were
asked for, by what it bills beyond them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, NoReturn

from mralign_core.errors import BudgetError, DataError
from mralign_core.llm.store import KeepsRecords, MemoryRecords

logger = logging.getLogger("mralign_core.llm")

BY_MONTH = "by_month"
"""Beside the models in a run's record: what it paid in each calendar month."""
CONTENTION_TRIES = 6
"""Times to look for room again that other runs have set aside, and may give back."""
CONTENTION_PAUSE_S = 0.1
"""Longest pause before the first of them, doubled before each further one."""


@dataclass
class Usage:
    """What one model was asked in one run.

    ``set_aside_usd`` is the most that requests in flight can cost; ``lost_usd`` the most that requests can have cost
    which were given up on before a reply came.
    """

    requests: int = 0
    kept_replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    set_aside_usd: float = 0.0
    lost_usd: float = 0.0

    @property
    def committed_usd(self) -> float:
        """Dollars that are or may be spent."""
        return self.cost_usd + self.set_aside_usd + self.lost_usd

    @classmethod
    def read(cls, values: Any) -> Usage:
        """The usage that a record says.

        Raises:
            ValueError: it holds no number where it should.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{values!r:.60} is no account of a model")
        for one in fields(cls):
            value = values.get(one.name, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{one.name} is {value!r:.40}, which is no amount")
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})


@dataclass
class Ledger:
    """The running account of one piece of paid work.

    Args:
        store: where the account of each run is kept.
        run: name of this run; a run that goes on after a crash goes on with its account.
        ceiling_usd: most dollars to spend over all runs, or None.
        ceiling_field: config field that sets it, for the message when it is reached.
    """

    store: KeepsRecords = field(default_factory=MemoryRecords)
    run: str = "this run"
    ceiling_usd: float | None = None
    ceiling_field: str = "annotate.budget_usd"

    def __post_init__(self) -> None:
        records = self.store.read()
        own = records.get(self.run, {})
        self._usage, self._by_month = self._read_record(self.run, own), read_months(own)
        self._note_others(records)
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._saving, self._reading = asyncio.Lock(), asyncio.Lock()
        self._version = self._saved_version = 0
        self._read_begun_s = -math.inf

    @property
    def usage(self) -> dict[str, Usage]:
        """What each model was asked in this run."""
        return {model: self._usage[model] for model in sorted(self._usage)}

    @property
    def committed_usd(self) -> float:
        """Dollars spent by all runs, and set aside."""
        return self._others_usd + sum(usage.committed_usd for usage in self._usage.values())

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._in_flight

    async def set_aside(self, model: str, most_usd: float) -> None:
        """Set the most that an attempt can cost aside, waiting for replies under way where that makes room.

        Raises:
            BudgetError: no reply under way can make enough room below the ceiling.
        """
        tries = 0
        while True:
            await self._take_place(model, most_usd)
            if not most_usd:
                return
            try:
                await self.save()
                await self._read_others()
                if self.ceiling_usd is None or self.committed_usd <= self.ceiling_usd:
                    return
            except BaseException:  # else those who wait for room would wait for this request for ever
                await self._release(model, most_usd)
                raise
            await self._release(model, most_usd)
            await self.save()
            if tries == CONTENTION_TRIES or not self._others_set_aside_usd:
                self._refuse(model, most_usd)
            await asyncio.sleep(random.random() * CONTENTION_PAUSE_S * 2**tries)
            tries += 1

    async def _take_place(self, model: str, most_usd: float) -> None:
        """Set aside by what is known of the other runs."""
        async with self._changed:
            while not self._has_room(most_usd):
                if self._in_flight:
                    await self._changed.wait()
                    continue
                await self._read_others()
                if not self._has_room(most_usd):
                    self._refuse(model, most_usd)
            self._in_flight += 1
            self._of(model).set_aside_usd += most_usd

    def _has_room(self, most_usd: float) -> bool:
        return self.ceiling_usd is None or self.committed_usd + most_usd <= self.ceiling_usd

    def _refuse(self, model: str, most_usd: float) -> NoReturn:
        assert self.ceiling_usd is not None
        raise BudgetError(self._too_much(model, most_usd, self.ceiling_usd))

    async def settle(
        self, model: str, most_usd: float, record: Mapping[str, Any] | None, *, lost_usd: float = 0.0
    ) -> None:
        """Put what an attempt cost in place of what was set aside for it.

        Args:
            model: what was asked.
            most_usd: what was set aside.
            record: tokens and price of the reply, None where none came.
            lost_usd: what may be billed though no reply came; it counts as spent.
        """
        usage = self._of(model)
        if record is not None:
            usage.requests += 1
            usage.prompt_tokens += record["prompt_tokens"]
            usage.completion_tokens += record["completion_tokens"]
            usage.cost_usd += record["cost_usd"]
        usage.lost_usd += lost_usd
        paid_usd = lost_usd + (record["cost_usd"] if record is not None else 0.0)
        if paid_usd:
            month = month_of(datetime.now(UTC))
            self._by_month[month] = self._by_month.get(month, 0.0) + paid_usd
        await self._release(model, most_usd)
        if most_usd:
            await self.save()

    async def _release(self, model: str, most_usd: float) -> None:
        usage = self._of(model)
        usage.set_aside_usd = max(0.0, round(usage.set_aside_usd - most_usd, 9))
        self._in_flight -= 1
        async with self._changed:
            self._changed.notify_all()

    async def _read_others(self) -> None:
        """See what other runs have spent by now; callers at the same time share one look."""
        if self.ceiling_usd is None:
            return
        asked_s = time.monotonic()
        async with self._reading:
            if self._read_begun_s >= asked_s:
                return
            begun_s = time.monotonic()
            self._note_others(await asyncio.to_thread(self.store.read))
            self._read_begun_s = begun_s

    def _note_others(self, records: Mapping[str, Any]) -> None:
        usages = [
            usage
            for run, record in records.items()
            if run != self.run
            for usage in self._read_record(run, record).values()
        ]
        self._others_usd = sum(usage.committed_usd for usage in usages)
        self._others_set_aside_usd = sum(usage.set_aside_usd for usage in usages)

    def _read_record(self, run: str, record: Any) -> dict[str, Usage]:
        return read_record(run, record, self.ceiling_field if self.ceiling_usd is not None else "")

    async def take_over(self, run: str, model: str, most_usd: Sequence[float]) -> None:
        """Answer for requests, each with what was set aside for it, that another run left under way.

        A run that goes on after a crash has what was set aside on its account already.
        """
        async with self._changed:
            self._in_flight += len(most_usd)
            if run == self.run:
                return
            others = dict((await asyncio.to_thread(self.store.read)).get(run, {}))
            before_usd = self._read_record(run, others).get(model, Usage()).set_aside_usd
            moved_usd = min(sum(most_usd), before_usd)
            self._others_usd -= moved_usd
            self._others_set_aside_usd -= moved_usd
            self._of(model).set_aside_usd += sum(most_usd)
        await self.save()
        if moved_usd:
            others[model] = {**others[model], "set_aside_usd": before_usd - moved_usd}
            await asyncio.to_thread(self.store.write, run, others)

    def count_kept(self, model: str) -> None:
        """Count a reply that was already there."""
        self._of(model).kept_replies += 1

    async def save(self) -> None:
        """Write this run's account; callers at the same time share one write."""
        self._version += 1
        wanted = self._version
        async with self._saving:
            if self._saved_version >= wanted:
                return
            version = self._version
            record: dict[str, Any] = {model: asdict(usage) for model, usage in self._usage.items()}
            if any(usage.set_aside_usd for usage in self._usage.values()):
                self._by_month.setdefault(month_of(datetime.now(UTC)), 0.0)  # says when it was set aside
            if self._by_month:
                record[BY_MONTH] = dict(self._by_month)
            await asyncio.to_thread(self.store.write, self.run, record)
            self._saved_version = version

    def _of(self, model: str) -> Usage:
        return self._usage.setdefault(model, Usage())

    def _too_much(self, model: str, most_usd: float, ceiling_usd: float) -> str:
        lost_usd = sum(usage.lost_usd for usage in self._usage.values())
        lost = f" ({lost_usd:.4f} of them for replies that were lost, and may be billed)" if lost_usd else ""
        return (
            f"the budget is used up: {self.committed_usd:.4f} of {ceiling_usd:g} dollars are spent or set aside{lost}, "
            f"and the next request to {model} can cost up to {most_usd:.4f}. All replies so far are kept: raise "
            f"{self.ceiling_field} and run again to go on, or lower max_output_tokens of the model"
        )


def month_of(when: datetime) -> str:
    """The calendar month, as accounts name it.

    >>> month_of(datetime(2026, 3, 9))
    '2026-03'
    """
    return f"{when:%Y-%m}"


def read_months(record: Any) -> dict[str, float]:
    """Month (UTC) → dollars that a run's account says it paid in it; of a damaged account, none."""
    months = record.get(BY_MONTH) if isinstance(record, Mapping) else None
    if not isinstance(months, Mapping):
        return {}
    return {str(month): float(usd) for month, usd in months.items() if isinstance(usd, int | float)}


def committed_by_month(record: Any) -> dict[str, float]:
    """The same, with what a run has set aside still, as when it was killed: in the last month that it names."""
    months = read_months(record)
    if months:
        set_aside = sum(usage.set_aside_usd for usage in read_record("", record).values())
        months[max(months)] += set_aside
    return months


def read_record(run: str, record: Any, ceiling_field: str = "") -> dict[str, Usage]:
    """A run's account; a damaged one counts as empty where there is no ceiling to hold.

    Args:
        run: its name, for the message.
        record: what the store has.
        ceiling_field: config field of the ceiling, if there is one.

    Raises:
        DataError: the record is damaged, and there is a ceiling.
    """
    try:
        if not isinstance(record, Mapping):
            raise ValueError("it is no account")
        return {model: Usage.read(values) for model, values in record.items() if model != BY_MONTH}
    except ValueError as error:
        text = f"the account of run {run!r} in the ledger is damaged: {error}"
        if ceiling_field:
            raise DataError(
                f"{text}; what it paid counts against {ceiling_field}, so restore the record, or remove it to forget "
                "what it paid"
            ) from None
        logger.warning("%s; it counts as empty", text)
        return {}

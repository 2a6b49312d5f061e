"""What requests cost: a ledger by model and run that survives the process, and a ceiling that is never crossed.

Before a request is sent, the most it can cost is set aside; when its reply is there, its price takes that
place. What was set aside when a process was killed, and for a request that was given up on, counts as spent,
because the provider may have billed it: the ceiling holds over crashes and reruns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from mralign_core.errors import BudgetError

READ_OTHERS_EVERY_S = 10.0
"""Runs at the same time may together cross a ceiling by what they spend in so many seconds."""
Record = dict[str, dict[str, Any]]
"""Model → the fields of its :class:`Usage`."""


class LedgerStore(Protocol):
    """Keeps one record a run. Called from several threads at once."""

    def read(self) -> Mapping[str, Record]:
        """The records of all runs."""
        ...

    def write(self, run: str, record: Record, /) -> None:
        """Put a run's record in place of the one before."""
        ...


class MemoryLedgerStore:
    """Records kept for the life of the process."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def read(self) -> Mapping[str, Record]:
        """The records of all runs."""
        return dict(self.records)

    def write(self, run: str, record: Record) -> None:
        """Put a run's record in place of the one before."""
        self.records[run] = record


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


@dataclass
class Ledger:
    """The running account of one piece of paid work.

    Args:
        store: where the account of each run is kept.
        run: name of this run; a run that goes on after a crash goes on with its account.
        ceiling_usd: most dollars to spend over all runs, or None.
        ceiling_field: config field that sets it, for the message when it is reached.
    """

    store: LedgerStore = field(default_factory=MemoryLedgerStore)
    run: str = "this run"
    ceiling_usd: float | None = None
    ceiling_field: str = "annotate.budget_usd"

    def __post_init__(self) -> None:
        records = self.store.read()
        self._usage = {model: Usage(**fields) for model, fields in records.get(self.run, {}).items()}
        self._others_usd = self._spent_by_others(records)
        self._read_again_at = time.monotonic() + READ_OTHERS_EVERY_S
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._saving = asyncio.Lock()
        self._version = self._saved_version = 0

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
        """Set the most that a request can cost aside, waiting for replies under way where that makes room.

        Raises:
            BudgetError: no reply under way can make enough room below the ceiling.
        """
        async with self._changed:
            await self._read_others()
            while self.ceiling_usd is not None and self.committed_usd + most_usd > self.ceiling_usd:
                if not self._in_flight:
                    raise BudgetError(self._too_much(model, most_usd, self.ceiling_usd))
                await self._changed.wait()
            self._in_flight += 1
            self._of(model).set_aside_usd += most_usd
        if not most_usd:
            return
        try:
            await self.save()
        except BaseException:  # else those who wait for room would wait for this request for ever
            await self._release(model, most_usd)
            raise

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
        """See now and then what runs at the same time have spent."""
        if self.ceiling_usd is not None and time.monotonic() > self._read_again_at:
            self._others_usd = self._spent_by_others(await asyncio.to_thread(self.store.read))
            self._read_again_at = time.monotonic() + READ_OTHERS_EVERY_S

    def _spent_by_others(self, records: Mapping[str, Record]) -> float:
        return sum(
            Usage(**fields).committed_usd
            for run, record in records.items()
            for fields in record.values()
            if run != self.run
        )

    async def take_over(self, run: str, model: str, most_usd: Sequence[float]) -> None:
        """Answer for requests, each with what was set aside for it, that another run left under way.

        A run that goes on after a crash has what was set aside on its account already.
        """
        async with self._changed:
            self._in_flight += len(most_usd)
            if run == self.run:
                return
            others = dict((await asyncio.to_thread(self.store.read)).get(run, {}))
            before_usd = others.get(model, {}).get("set_aside_usd", 0.0)
            moved_usd = min(sum(most_usd), before_usd)
            self._others_usd -= moved_usd
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
            version, record = self._version, {model: asdict(usage) for model, usage in self._usage.items()}
            await asyncio.to_thread(self.store.write, self.run, record)
            self._saved_version = version

    def _of(self, model: str) -> Usage:
        return self._usage.setdefault(model, Usage())

    def _too_much(self, model: str, most_usd: float, ceiling_usd: float) -> str:
        return (
            f"the budget is used up: {self.committed_usd:.4f} of {ceiling_usd:g} dollars are spent or set aside, and "
            f"the next request to {model} can cost up to {most_usd:.4f}. All replies so far are kept: raise "
            f"{self.ceiling_field} and run again to go on, or lower max_output_tokens of the model"
        )

"""The one page of a run: what it found, where everything is, what its config changes; and a line for each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mralign_core.reporting.markdown import literal
from mralign_core.reporting.result_table import ResultTable

MINUTE, HOUR = 60.0, 3600.0


class StageStory(NamedTuple):
    """What a stage came to.

    ``made`` and ``cached`` are the artifacts that this run made, and those that were there, each with its rows where it
    is a table; ``cost_usd`` is what the run paid in it, or may have to pay.
    """

    stage: str
    seconds: float
    made: Mapping[str, int | None]
    cached: Mapping[str, int | None]
    cost_usd: float

    def line(self) -> str:
        """In one line of the log.

        >>> StageStory("generate", 75.0, {"generations": 320}, {"candidates": 64}, 0.0).line()
        'generate: made generations (320 rows); cached candidates (64 rows); in 1 min 15 s'
        """
        parts = [
            f"{verb} {', '.join(_counted(*item) for item in found.items())}"
            for verb, found in (("made", self.made), ("cached", self.cached))
            if found
        ]
        cost = [f"${self.cost_usd:,.2f} paid"] if self.cost_usd else []
        return f"{self.stage}: " + "; ".join([*parts, *cost, f"in {duration(self.seconds)}"])


class Finding(NamedTuple):
    """What a finished run found."""

    headline: str
    sentences: Sequence[str]
    tables: Sequence[ResultTable]
    places: Mapping[str, str]
    """What it is → where it is, as Markdown."""


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(4.2), duration(75), duration(7260), duration(7_200)
    ('4 s', '1 min 15 s', '2 h 1 min', '2 h')
    """
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    large, small = ("h", "min") if whole >= HOUR else ("min", "s")
    size = int(HOUR if whole >= HOUR else MINUTE)
    rest = whole % size // (60 if whole >= HOUR else 1)
    return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")


def time_left(waiting: Sequence[str], seconds: Mapping[str, float], under_way_s: float = 0.0) -> str:
    """How long the rest of a run takes, going by its last one.

    Args:
        waiting: stages that have not ended, the one under way first.
        seconds: stage → seconds that it took when it last computed something; 0 where all of it is there.
        under_way_s: how long the first has been under way.

    >>> time_left(["train", "evaluate"], {"train": 100.0, "evaluate": 60.0}, 40.0)
    'at most about 2 min left'
    >>> time_left(["train", "evaluate"], {"train": 100.0})
    'at most about 1 min 40 s left, and evaluate, which no run of this name has timed'
    """
    known = [stage for stage in waiting if stage in seconds]
    left = sum(seconds[stage] for stage in known)
    if known and known[0] == waiting[0]:
        left -= min(under_way_s, seconds[known[0]])
    untimed = [stage for stage in waiting if stage not in seconds]
    if not known:
        return f"time left not known: no run of this name has timed {', '.join(untimed)}" if untimed else ""
    return f"at most about {duration(left)} left" + (
        f", and {', '.join(untimed)}, which no run of this name has timed" if untimed else ""
    )


def share_done(done: Sequence[str], waiting: Sequence[str], seconds: Mapping[str, float], under_way_s: float) -> float:
    """Per cent of a run that is done, by time where its last run was timed, else by stages.

    >>> share_done(["prepare"], ["train"], {"prepare": 10.0, "train": 30.0}, 10.0)
    50.0
    """
    stages = [*done, *waiting]
    usual = [seconds[stage] for stage in stages if stage in seconds]
    typical = sum(usual) / len(usual) if usual else 1.0
    weights = {stage: max(seconds.get(stage, typical), 1e-3) for stage in stages}
    reached = sum(weights[stage] for stage in done)
    if waiting and usual:
        reached += min(under_way_s, 0.95 * weights[waiting[0]])
    return round(100.0 * reached / sum(weights.values()), 1)


def changed_fields(config: Any, preset: Any, field: str = "") -> list[list[str]]:
    """Each field that differs from the preset: its dotted name, the preset's value and this run's.

    >>> changed_fields({"seed": 1, "train": {"beta": 0.1}}, {"seed": 0, "train": {"beta": 0.1}})
    [['seed', '0', '1']]
    """
    if isinstance(config, Mapping) and isinstance(preset, Mapping):
        names = dict.fromkeys([*preset, *config])
        pairs = {f"{field}.{name}" if field else str(name): (config.get(name), preset.get(name)) for name in names}
    elif isinstance(config, list) and isinstance(preset, list) and len(config) == len(preset):
        pairs = {f"{field}.{place}": pair for place, pair in enumerate(zip(config, preset, strict=True))}
    else:
        return [] if config == preset else [[field, _shown(preset), _shown(config)]]
    return [row for name, (now, before) in pairs.items() for row in changed_fields(now, before, name)]


def run_page(
    *,
    name: str,
    preset: str,
    changes: Sequence[Sequence[str]],
    stages: Sequence[StageStory],
    found: Finding | None,
    curves: str = "",
) -> str:
    """The page as Markdown: headline and findings, results, places, what it cost, and what differs from the preset.

    Args:
        name: of the config.
        preset: the config file that it is compared with.
        changes: what :func:`changed_fields` returns.
        stages: those that have ended.
        found: what the run found; None while it is under way.
        curves: where those of its trainings are, as Markdown.
    """
    parts = [f"# {literal(found.headline if found else f'{name}: under way')}"]
    if found:
        parts += ["\n".join(f"- {literal(sentence)}" for sentence in found.sentences)]
        parts += [table.to_markdown() for table in found.tables]
        parts += ["## Where it is", "\n".join(f"- {literal(what)}: {place}" for what, place in found.places.items())]
    if stages:
        parts += ["## What was done", _stage_table(stages).to_markdown()]
    if curves:
        parts += ["## Curves of the training", curves]
    parts += ["## What differs from the preset", _changes(preset, changes)]
    return "\n\n".join(part for part in parts if part)


def _stage_table(stages: Sequence[StageStory]) -> ResultTable:
    rows = [
        [
            story.stage,
            ", ".join(_counted(*item) for item in story.made.items()) or "–",
            ", ".join(_counted(*item) for item in story.cached.items()) or "–",
            duration(story.seconds),
            f"{story.cost_usd:,.2f}",
        ]
        for story in stages
    ]
    total = [duration(sum(story.seconds for story in stages)), f"{sum(story.cost_usd for story in stages):,.2f}"]
    columns = ["stage", "made", "cached", "time", "dollars"]
    return ResultTable(columns, [*rows, ["all", "", "", *total]], text_columns=["made", "cached"])


def _changes(preset: str, changes: Sequence[Sequence[str]]) -> str:
    if not changes:
        return f"Nothing: this run is `{preset}` as it ships."
    return ResultTable(["field", preset, "this run"], changes, text_columns=[preset, "this run"]).to_markdown()


def _counted(name: str, rows: int | None) -> str:
    return name if rows is None else f"{name} ({rows:,} rows)"


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"

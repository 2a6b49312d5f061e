"""Commands for living with a store: its runs, what may go, what is pinned, and whether all of it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from flows.commands.options import ConfigOption, SetOption
from flows.commands.results import console
from mralign_core.config import RetentionConfig, RunConfig

if TYPE_CHECKING:
    from mralign_core.retention.plan import RemovalPlan
    from mralign_core.retention.runs import RunLine

commands = typer.Typer()
MOST_DAMAGED = 100
"""Damaged things that are named; more are counted."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@commands.command()
def runs(
    config: Annotated[
        str, typer.Option("--config", "-c", help="Only runs of this config's name, in its store. \\[default: all]")
    ] = "",
    as_json: JsonOption = False,
    set_: SetOption = None,
) -> None:
    """List the runs of a store with their scores, cost, age and state, the newest first."""
    from mralign_core.retention.runs import list_runs
    from mralign_core.storage import ArtifactStore

    settings = _settings(config or "pocket", set_)
    lines = list_runs(ArtifactStore(settings.storage), datetime.now(UTC), settings.name if config else "")
    if as_json:
        rows = [{**line._asdict(), "at": line.at.isoformat()} for line in lines]
        console.print_json(json.dumps(rows))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("run", "config", "age", "state", "Acc / Mis, %", "dollars"):
        table.add_column(
            column, justify="right" if column in ("age", "dollars") else "left", no_wrap=column != "config"
        )
    for line in lines:
        what = (line.run[:8], line.config, _age(line.age_s), line.state)
        table.add_row(*map(escape, what), escape(_scores(line)), f"{line.cost_usd:.2f}")
    console.print(table if lines else f"no run is noted in {settings.storage.root}")


@commands.command()
def gc(
    config: ConfigOption = "pocket",
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only shown.")] = False,
    runs: Annotated[
        int | None, typer.Option(min=0, help="Newest runs of each config to keep; storage.retention.runs by default.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0, help="Keep what was made within so many days; storage.retention.days.")
    ] = None,
    as_json: JsonOption = False,
    set_: SetOption = None,
) -> None:
    """Show what nothing needs any more in a store, and how much it is; with `--yes` remove it.

    What a version, an alias, a pin, a recent run, or a run at work reaches stays, and so do all replies of models,
    which were paid for. docs/storage.md says what counts. It may be killed, and run beside others.
    """
    from mralign_core.retention.collect import Collector
    from mralign_core.storage import ArtifactStore
    from tasks.engine.graph import shard_kinds
    from tasks.engine.progress import progress

    settings = _settings(config, set_)
    given = {name: value for name, value in (("runs", runs), ("days", days)) if value is not None}
    policy = RetentionConfig(**{**settings.storage.retention.model_dump(), **given})
    collector = Collector(ArtifactStore(settings.storage), policy, shard_kinds())
    with progress("reading manifests", "gc-read") as report:
        plan = collector.plan(report)
    removed: dict[str, Any] = {}
    if yes and plan.going:
        with progress("removing", "gc-remove") as report:
            done = collector.carry_out(plan, report)
        removed = {"removed": len(done.removed), "removed_bytes": done.num_bytes, "spared": len(done.spared)}
    if as_json:
        _print_plan_json(plan, removed)
        return
    _print_removal(plan, settings)
    if removed:
        spared = f"; {removed['spared']} are in use after all, and stay" if removed["spared"] else ""
        console.print(f"removed {_size(removed['removed_bytes'])}{spared}", highlight=False)
    elif plan.going:
        console.print("nothing is removed without --yes", highlight=False)


@commands.command()
def pin(
    artifact: Annotated[
        str, typer.Argument(help="URI, stage/key, or the beginning of a key; lists pins if empty.")
    ] = "",
    why: Annotated[str, typer.Option(help="For those who find the pin later.")] = "",
    config: ConfigOption = "pocket",
    set_: SetOption = None,
) -> None:
    """Keep an artifact, and all it was made from, whatever `mralign gc` is told."""
    from mralign_core.retention.roots import pin_artifact, read_pins
    from mralign_core.storage import ArtifactStore

    store = ArtifactStore(_settings(config, set_).storage)
    if artifact:
        made = pin_artifact(store, artifact, why).artifact
        console.print(f"pinned {made.stage}/{made.key}", highlight=False, soft_wrap=True)
        return
    for pinned in read_pins(store):
        ref = pinned.artifact
        text = f"{ref.stage}/{ref.key}  {pinned.at:%Y-%m-%d} on {pinned.host}  {pinned.why}"
        console.print(escape(text), highlight=False, soft_wrap=True)


@commands.command()
def unpin(
    artifact: Annotated[str, typer.Argument(help="The beginning of the key, or of stage/key, of what was pinned.")],
    config: ConfigOption = "pocket",
    set_: SetOption = None,
) -> None:
    """Take a pin away; the artifact stays until `mralign gc` finds that nothing needs it."""
    from mralign_core.retention.roots import unpin_artifact
    from mralign_core.storage import ArtifactStore

    ref = unpin_artifact(ArtifactStore(_settings(config, set_).storage), artifact).artifact
    console.print(f"no longer pinned: {ref.stage}/{ref.key}", highlight=False, soft_wrap=True)


@commands.command()
def verify(config: ConfigOption = "pocket", as_json: JsonOption = False, set_: SetOption = None) -> None:
    """Read everything in a store, compare it with its digests, and name what is damaged; exits with 1 if some is."""
    from mralign_core.retention.verify import verify_store
    from mralign_core.storage import ArtifactStore
    from tasks.engine.progress import progress

    settings = _settings(config, set_)
    with progress("verifying, bytes", "verify") as report:
        found = verify_store(ArtifactStore(settings.storage), report)
    if as_json:
        damaged = [each._asdict() for each in found.damaged]
        console.print_json(json.dumps({**found._asdict(), "damaged": damaged}))
    else:
        for damage in found.damaged[:MOST_DAMAGED]:
            console.print(f"[red]damaged[/red] {escape(damage.problem)}", highlight=False, soft_wrap=True)
            console.print(f"  remedy: {escape(damage.remedy)}", highlight=False, soft_wrap=True)
        read = f"{found.num_artifacts:,} artifacts and {found.num_records:,} records, {_size(found.num_bytes)}"
        begun = f"; {found.num_unfinished} begun and never finished" if found.num_unfinished else ""
        state = f"{len(found.damaged)} damaged" if found.damaged else "all as they were written"
        console.print(f"read {read}: {state}{begun}", highlight=False, soft_wrap=True)
    if found.damaged:
        raise typer.Exit(1)


def _settings(config: str, set_: list[str] | None) -> RunConfig:
    from flows.commands.cli import overrides_of, read_following

    return read_following(config, overrides_of(set_))


def _print_removal(plan: RemovalPlan, settings: RunConfig) -> None:
    if plan.going:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for column in ("what nothing needs", "how many", "size"):
            table.add_column(column, justify="left" if column.startswith("what") else "right")
        for kind, (count, size) in plan.by_kind().items():
            table.add_row(escape(kind), f"{count:,}", _size(size))
        table.add_row("in all", f"{len(plan.going):,}", _size(plan.num_bytes), style="bold")
        console.print(table)
    kept = f"{len(plan.kept):,} artifacts stay, {_size(plan.num_bytes_kept)}"
    root = settings.storage.root
    text = kept if plan.going else f"there is nothing in {root} that goes: {kept}"
    console.print(text, highlight=False, soft_wrap=True)


def _print_plan_json(plan: RemovalPlan, removed: Mapping[str, Any]) -> None:
    kinds = {kind: {"count": count, "bytes": size} for kind, (count, size) in plan.by_kind().items()}
    kept = {"count": len(plan.kept), "bytes": plan.num_bytes_kept, "why": dict(plan.kept)}
    going = [{"kind": each.kind, "path": each.path, "bytes": each.num_bytes} for each in plan.going]
    console.print_json(json.dumps({"kinds": kinds, "going": going, "kept": kept, **removed}))


def _scores(line: RunLine) -> str:
    """Acc and Mis of each variant, in per cent, a line each."""
    return "\n".join(
        f"{variant} {' / '.join(f'{100 * value:.1f}' for value in values.values())}"
        for variant, values in line.scores.items()
    )


def _age(seconds: float) -> str:
    hours = int(seconds // 3600)
    return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h {int(seconds // 60) % 60} min"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"

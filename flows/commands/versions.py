"""What ``mralign versions``, ``show``, ``diff``, ``promote`` and ``rollback`` do and print.

A promotion and a rollback are told to the team's registry (``retrain.registry``) once they have happened; that it is
away is said, and stops neither.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flows.commands.results import console, in_type
from mralign_core.config import RunConfig
from mralign_core.errors import ArtifactError, ConfigError, UserError
from mralign_core.storage import ArtifactStore
from mralign_core.versions.aliases import AliasEntry, Aliases, check_alias_name, named_by_aliases, version_name

if TYPE_CHECKING:
    from mralign_core.versions.version import Version


def print_versions(config: RunConfig, *, as_json: bool, with_history: bool) -> None:
    """All versions of a store, with the aliases that name them; or the aliases' moves.

    Args:
        config: says which store, and by which alias its commands go.
        as_json: print JSON, for programs.
        with_history: print every move of every alias too.
    """
    from mralign_core.reporting.version_tables import history_table, version_list
    from mralign_core.versions.version import read_versions

    store = ArtifactStore(config.storage)
    aliases, versions = Aliases(store), read_versions(store)
    moves = {name: aliases.history(name) for name in aliases.names()}
    named = {name: history[-1].to for name, history in moves.items() if history}
    own = config.retrain.alias
    if as_json:
        rows = [_as_json(version, named) for version in versions]
        history = {name: [_entry_as_json(entry) for entry in entries] for name, entries in moves.items()}
        console.print_json(
            data={"versions": rows, "aliases": named, "alias": own, **({"history": history} if with_history else {})}
        )
        return
    if not versions:
        nothing = f"no version in {store.root_uri} yet: `mralign run` makes one of each variant that it trains"
        console.print(escape(nothing), highlight=False, soft_wrap=True)
    else:
        console.print(in_type(version_list(versions, named)))
        names = version_name(named[own]) if own in named else "no version"
        console.print(f"alias of this config (retrain.alias): {own} names {names}", highlight=False, soft_wrap=True)
    for name, version_id in named.items():
        if version_id not in {version.id for version in versions}:
            lost = f"{name} names {version_name(version_id)}, which is damaged or gone: mralign rollback --alias {name}"
            console.print(f"[red]{escape(lost)}[/red]", highlight=False, soft_wrap=True)
    for name, entries in moves.items() if with_history else ():
        console.print(in_type(history_table(entries), title=f"every move of {name}"))


def print_version(config: RunConfig, text: str) -> None:
    """All about one version; about the one that the config's alias names where ``text`` is empty."""
    from mralign_core.reporting.version_tables import history_table, score_table
    from mralign_core.versions.record import CARD_FILE
    from mralign_core.versions.version import resolve_version

    store = ArtifactStore(config.storage)
    version = resolve_version(store, text) if text else version_named(store, config.retrain.alias)
    aliases = Aliases(store)
    record = version.record
    moves = {name: aliases.history(name) for name in aliases.names()}
    rows = {
        "version": version.id,
        "made": f"{version.made_at:%Y-%m-%d %H:%M} UTC",
        "named by": ", ".join(name for name, entries in moves.items() if _names(entries, version)) or "no alias",
        "base model": record.base_model,
        "trained on": f"{record.trained_on.number:,} questions ({record.trained_on.sha256[:12]})",
        "measured on": f"{record.held_out.number:,} questions ({record.held_out.sha256[:12]})",
        "left out": ", ".join(f"{count:,} of {kind}" for kind, count in record.left_out.items()) or "nothing",
        "labels and verdicts": f"{record.cost_usd:.2f} dollars",
        "adapter": version.adapter.uri,
        "card": store.open_file(version.ref, CARD_FILE),
    }
    _print_facts(rows)
    _print_facts({kind: path for kind, path in record.made_from.items() if kind != "adapter"})
    if record.scores:
        console.print(in_type(score_table(record)))
    for name, entries in moves.items():
        own = [entry for entry in entries if version.id in (entry.to, entry.from_)]
        if own:
            console.print(in_type(history_table(own), title=f"its moves as {name}"))


def print_differences(config: RunConfig, before: str, after: str) -> None:
    """What sets two versions apart."""
    from mralign_core.reporting.version_tables import difference_notes, difference_tables
    from mralign_core.versions.differences import version_differences
    from mralign_core.versions.version import resolve_version

    store = ArtifactStore(config.storage)
    first, second = resolve_version(store, before), resolve_version(store, after)
    found = version_differences(store, first, second)
    for table in difference_tables(found, first.name, second.name):
        console.print(in_type(table))
    for note in difference_notes(found):
        console.print(escape(note), highlight=False, soft_wrap=True)


def print_side_by_side(config: RunConfig, names: Sequence[str]) -> None:
    """Versions side by side; the newest few where none is named.

    Args:
        config: says which store.
        names: of versions, aliases, or configs, whose last run is meant.
    """
    from mralign_core.reporting.side_by_side import side_by_side, side_by_side_note
    from mralign_core.versions.naming import named_versions

    store = ArtifactStore(config.storage)
    versions = named_versions(store, names)
    for table in side_by_side(versions, named_by_aliases(store)):
        console.print(in_type(table))
    console.print(escape(side_by_side_note(versions)), highlight=False, soft_wrap=True)


def version_named(store: ArtifactStore, alias: str) -> Version:
    """The version that an alias names; unlike ``resolve_version``, nothing else that is called so.

    Raises:
        ArtifactError: it names none, or one that is damaged or gone.
    """
    from mralign_core.versions.version import resolve_version

    if Aliases(store).current(alias) is None:
        raise ArtifactError(
            f"alias {alias!r} names no version in {store.root_uri}: have it name one (mralign promote V --alias "
            f"{alias}), or name a version or another alias (mralign versions)"
        )
    return resolve_version(store, alias)


def promote(config: RunConfig, text: str, alias: str, why: str) -> None:
    """Have an alias, the config's where it is empty, name a version, and say what it named before."""
    from mralign_core.versions.version import resolve_version

    alias = alias or config.retrain.alias
    check_alias_name(alias)
    store = ArtifactStore(config.storage)
    aliases = Aliases(store)
    before = aliases.current(alias)
    version = resolve_version(store, text)
    if before and before.to == version.id:
        console.print(f"{alias} names {version.name} already: {escape(str(before))}", highlight=False, soft_wrap=True)
        return
    expected = before.to if before else None
    _print_move(alias, aliases.move(alias, version.id, expected=expected, by=user_name(), why=why))
    _tell_registry(config, store)


def rollback(config: RunConfig, alias: str, why: str) -> None:
    """Have an alias, the config's where it is empty, name what it named before."""
    alias, store = alias or config.retrain.alias, ArtifactStore(config.storage)
    _print_move(alias, Aliases(store).rollback(alias, by=user_name(), why=why))
    _tell_registry(config, store)


def sync_registry(config: RunConfig) -> None:
    """Give the team's registry what it lacks of the store's versions and aliases, and say what that was.

    Raises:
        ConfigError: the config names no registry.
        RegistryError: it does not answer, or refuses it.
    """
    from mralign_core.versions.registry import tell_registry

    if config.retrain.registry.kind == "none":
        raise ConfigError("versions --sync: the config names no registry; set retrain.registry.kind and .uri")
    changes = tell_registry(ArtifactStore(config.storage), config.retrain.registry, user_name())
    console.print(escape(f"registry: {changes}"), highlight=False, soft_wrap=True)


def _tell_registry(config: RunConfig, store: ArtifactStore) -> None:
    """Tell the registry, if there is one, what was moved; that it can't be told is said."""
    from mralign_core.versions.registry import tell_registry

    try:
        changes = tell_registry(store, config.retrain.registry, user_name())
    except UserError as error:
        console.print(f"[yellow]{escape(str(error))}[/yellow]", highlight=False, soft_wrap=True)
        return
    if config.retrain.registry.kind != "none":
        console.print(escape(f"registry: {changes}"), highlight=False, soft_wrap=True)


def _names(history: list[AliasEntry], version: Version) -> bool:
    return bool(history) and history[-1].to == version.id


def _print_move(alias: str, entry: AliasEntry) -> None:
    before = version_name(entry.from_) if entry.from_ else "nothing"
    console.print(f"{alias}: {before} → {version_name(entry.to)}", highlight=False, soft_wrap=True)


def _print_facts(facts: dict[str, Any]) -> None:
    for name, text in facts.items():
        console.print(f"[bold]{name:<22}[/bold]{escape(str(text))}", highlight=False, soft_wrap=True)


def _as_json(version: Version, named: dict[str, str]) -> dict[str, Any]:
    return {
        "name": version.name,
        "id": version.id,
        "made_at": version.made_at.isoformat(),
        "aliases": [name for name, version_id in named.items() if version_id == version.id],
        "uri": version.ref.uri,
        "adapter": version.adapter.uri,
        **version.record.model_dump(mode="json", exclude={"config"}),
    }


def _entry_as_json(entry: AliasEntry) -> dict[str, Any]:
    return entry.model_dump(mode="json", by_alias=True, exclude={"token"})


def user_name() -> str:
    """Who runs this, for the history of an alias."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"

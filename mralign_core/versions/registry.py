"""The team's model registry: it is told which versions the store's aliases name, and the aliases.

Registered are versions that an alias names or has named: what was in production, or can be rolled back to. The others,
a few a week, are measurements; they would fill the registry with adapters that nobody serves, and the store's retention
removes them.

The store stays the truth. :func:`tell_registry` compares the registry with it and makes up what is missing, whatever
was missed and whoever changed the registry meanwhile, so repeating it changes nothing. Of several at once one works, by
a claim, which is asked for again before each request that makes a run or a version: MLflow would make it twice. That
carries the version's id as a tag from this one request on, and is looked for before. A request that gets no reply may
be carried out yet, so it is sent once in a telling and left to the next one, which looks again; MLflow's own attempts,
which would repeat it, are switched off. (MLflow refuses a second experiment or model of one name.) So who is killed,
stopped or gets no reply makes no version twice, unless the server carries a request out after the next telling has
looked, or the claim is lost in the moment between asking for it and the request. Of two versions of one id, aliases
name the lower. A run that was begun is found by the same tag, and gone on with.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mralign_core.config.registry import RegistryConfig
from mralign_core.errors import ArtifactError, ConfigError, RegistryError, StorageError
from mralign_core.storage import ArtifactStore, Holder, key_of
from mralign_core.storage.claims import Turn
from mralign_core.storage.scratch import scratch_folder
from mralign_core.versions.aliases import AliasEntry, Aliases, version_key, version_name
from mralign_core.versions.record import CARD_FILE, RECORD_FILE
from mralign_core.versions.version import Version, read_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("mralign_core.versions")

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Of MLflow's, whatever the user's are."""
DEFAULT_SETTINGS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""Of MLflow's, where the user has none: seconds for a reply, which it gives 120."""
ATTEMPTS, PAUSE_S = 3, 1.0
VERSION_TAG, RUN_TAG = "mralign.version", "mralign.version"
ADAPTER_FOLDER = "adapter"
RESERVED = re.compile(r"latest|v\d+")
"""Aliases that MLflow keeps for itself."""
UNFIT = re.compile(r"[^\w -]")
"""What the name of a metric can't have, or what would make folders of it."""
LONGEST_METRIC, DIGEST_DIGITS = 250, 8
"""Bytes of a metric's name, which MLflow counts in characters and keeps as a file's name where it has no database; and
of the digest that tells apart what would have one name."""
NOT_TAKEN = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})
"""What MLflow answers to a request whose content it does not take."""
FILE_NOT_TAKEN = frozenset({400, 413, 414, 422})
"""The same, of the server of its files: HTTP's codes."""
NOT_DONE = NOT_TAKEN | {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "REQUEST_LIMIT_EXCEEDED"}
"""What MLflow answers to a request that it has not carried out and never will."""


@dataclass
class RegistryChanges:
    """What a registry was told."""

    versions: list[str] = field(default_factory=list)
    """Versions that are new in it, by their names."""
    aliases: list[str] = field(default_factory=list)
    """Aliases that name another version now: sentences."""
    left_out: list[str] = field(default_factory=list)
    """What it can't have, and why: sentences."""

    def __str__(self) -> str:
        done = [f"registered {name}" for name in self.versions] + self.aliases
        return "; ".join([*(done or ["it has all else" if self.left_out else "it has all of it"]), *self.left_out])


def check_registry(section: RegistryConfig) -> None:
    """Refuse a registry that this environment can't speak to.

    Raises:
        ConfigError: MLflow is not installed.
    """
    if section.kind == "mlflow" and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "retrain.registry.kind 'mlflow' needs package mlflow or mlflow-skinny: pip install 'mr-align[mlflow]'"
        )


def tell_registry(store: ArtifactStore, section: RegistryConfig, run: str) -> RegistryChanges:
    """Give a registry all that it lacks of the store's versions and aliases; none where the config names none.

    Args:
        store: whose.
        section: which registry.
        run: what claims call who does it.

    Raises:
        ConfigError: MLflow is not installed.
        RegistryError: the registry does not answer, or refuses whoever asks, or another process has taken over.
        StorageError: the store fails.
    """
    changes = RegistryChanges()
    if section.kind == "none":
        return changes
    check_registry(section)
    claim = f"registry/{key_of(uri=section.uri, model=section.model_name)[:16]}"
    with store.claims(run).hold(claim, lambda: None, _say_who) as turn:
        registry = _Registry(section, turn)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _make_up(store, section, registry, changes)
                break
            except (StorageError, RegistryError):
                raise
            except Exception as error:  # of MLflow, its transports and its databases, which have no class in common
                if attempt == ATTEMPTS:
                    raise _refused(section, error) from error
                time.sleep(PAUSE_S)
    return changes


def _say_who(holder: Holder) -> None:
    logger.debug("waiting for %s, who tells the registry", holder)


def _first_line(error: Exception) -> str:
    return f"{next(iter(str(error).splitlines()), type(error).__name__):.300}"


def _is_refusal(error: Exception) -> bool:
    """Whether a registry does not take what it was sent, whoever sends it and however often."""
    code, reply = getattr(error, "error_code", ""), getattr(error, "response", None)
    return code in NOT_TAKEN or getattr(reply, "status_code", 0) in FILE_NOT_TAKEN


def _refused(section: RegistryConfig, error: Exception) -> RegistryError:
    return RegistryError(
        f"retrain.registry {section.uri}: registered model {section.model_name!r} was not brought up to the store: "
        f"{_first_line(error)}. Check the address, the server and MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN; "
        "the next retraining tells it again, and so does `mralign versions --sync`"
    )


class _NoReplyError(Exception):
    """A request that makes something was sent, and it is not known whether it will be carried out."""


def _make_up(store: ArtifactStore, section: RegistryConfig, registry: _Registry, changes: RegistryChanges) -> None:
    """Register what is missing, then have each alias name in the registry what it names in the store."""
    aliases = Aliases(store)
    changes.left_out.clear()
    mirrored = list(_mirrored(aliases.names(), section, changes))
    registry.restore()
    numbers = registry.numbers()
    entries = [entry for name in mirrored for entry in aliases.history(name)]
    lacking = [each for each in dict.fromkeys(entry.to for entry in entries) if each not in numbers]
    whole = [version for each in lacking if (version := _whole(store, each, changes))]
    if whole:
        registry.prepare()
    for version in whole:
        try:
            numbers[version.id] = registry.register(store, version)
        except _NoReplyError as error:
            changes.left_out.append(f"version {version.name}: {error}")
        except Exception as error:
            if not _is_refusal(error):
                raise
            changes.left_out.append(f"version {version.name} was refused: {_first_line(error)}")
        else:
            changes.versions.append(version.name)
    named = registry.aliases()
    for name in mirrored:
        _move(aliases, name, registry, numbers, named.get(name), changes)


def _mirrored(names: Iterable[str], section: RegistryConfig, changes: RegistryChanges) -> Iterator[str]:
    for name in names:
        if section.aliases and name not in section.aliases:
            continue
        if RESERVED.fullmatch(name):
            changes.left_out.append(f"MLflow keeps alias {name!r} for itself: use another name")
        else:
            yield name


def _whole(store: ArtifactStore, version_id: str, changes: RegistryChanges) -> Version | None:
    """A version, if all that is registered of it is there."""
    version = read_version(store, version_key(version_id))
    if version is None:
        changes.left_out.append(f"version {version_name(version_id)} is damaged or no longer in the store")
        return None
    try:
        store.open_directory(version.adapter)
        store.open_directory(version.ref)
    except ArtifactError as error:
        changes.left_out.append(f"version {version.name}: {error}")
        return None
    return version


def _move(
    aliases: Aliases,
    name: str,
    registry: _Registry,
    numbers: dict[str, str],
    before: str | None,
    changes: RegistryChanges,
) -> None:
    """Have an alias name what the store's does, also where the store's is moved meanwhile."""
    told: AliasEntry | None = None
    while (entry := aliases.current(name)) and (told is None or entry.to != told.to):
        number = numbers.get(entry.to)
        if number is None:
            return  # left out, which is said, or named since the versions were read: whoever moved it tells
        if number != before:
            registry.client.set_registered_model_alias(registry.name, name, number)
            changes.aliases.append(f"{name} names {version_name(entry.to)} (version {number} of {registry.name})")
        told, before = entry, number


class _Registry:
    """A registered model, and the experiment with its runs, in one telling."""

    def __init__(self, section: RegistryConfig, turn: Turn[None]) -> None:
        self.name = section.model_name
        self._uri = section.uri
        self._turn = turn
        self._unanswered: set[str] = set()

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's."""
        return _client(self._uri)

    def numbers(self) -> dict[str, str]:
        """Id of each version of ours that is registered → its number there, the lowest of several."""
        found: dict[str, str] = {}
        for one in _pages(self.client.search_model_versions, f"name='{self.name}'"):
            version_id = one.tags.get(VERSION_TAG, "")
            if version_id and int(one.version) < int(found.get(version_id, int(one.version) + 1)):
                found[version_id] = str(one.version)
        return found

    def aliases(self) -> dict[str, str]:
        """Alias → number of the version that it names there."""
        model = _unless_missing(self.client.get_registered_model, self.name)
        return {alias: str(number) for alias, number in model.aliases.items()} if model else {}

    def restore(self) -> None:
        """Put the experiment back, with its runs, where somebody has deleted it: MLflow keeps its name taken."""
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment and experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)

    def prepare(self) -> None:
        """Make what all versions need, where it is missing: so what is refused later is one version."""
        if self.client.get_experiment_by_name(self.name) is None:
            self.client.create_experiment(self.name)
        if _unless_missing(self.client.get_registered_model, self.name) is None:
            self.client.create_registered_model(self.name, description="Versions of MR-ALIGN that an alias has named.")

    def register(self, store: ArtifactStore, version: Version) -> str:
        """Make a version of ours one of the registered model's, which :meth:`prepare` has made; its number."""
        run_id = self._run(store, version)
        tags = {VERSION_TAG: version.id, **_tags(store, version)}
        source = f"runs:/{run_id}/{ADAPTER_FOLDER}"
        made = self._make(
            f"version {version.id}",
            lambda: self.client.create_model_version(self.name, source, run_id, tags=tags, description=version.name),
        )
        return str(made.version)

    def _make(self, what: str, request: Callable[[], Any]) -> Any:
        """Send a request that must not be carried out twice: once in a telling, and only while nobody else tells.

        Raises:
            _NoReplyError: it was sent before, without a reply.
            RegistryError: another process may send it too.
        """
        if what in self._unanswered:
            raise _NoReplyError(
                "MLflow did not reply when it was made, and may make it yet; the next telling looks again"
            )
        if not (self._turn.is_alone and self._turn.claim and self._turn.claim.is_held()):
            raise RegistryError(
                f"registered model {self.name!r}: another process may be telling the registry, as this one was stopped "
                "for longer than storage.claim_lease_s, or the store takes no claims; `mralign versions --sync` tells "
                "what is missing then"
            )
        self._unanswered.add(what)
        try:
            made = request()
        except Exception as error:
            if getattr(error, "error_code", "") in NOT_DONE:
                self._unanswered.remove(what)
            raise
        self._unanswered.remove(what)
        return made

    def _run(self, store: ArtifactStore, version: Version) -> str:
        """The id of the finished run that stands for a version."""
        experiment_id = self.client.get_experiment_by_name(self.name).experiment_id
        begun = self.client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{version.id}'", max_results=1)
        at_ms = int(version.made_at.timestamp() * 1000)
        if begun:
            run = begun[0]
        else:
            tags = {RUN_TAG: version.id, **_tags(store, version)}
            run = self._make(
                f"run of {version.id}",
                lambda: self.client.create_run(experiment_id, start_time=at_ms, tags=tags, run_name=version.name),
            )
        run_id: str = run.info.run_id
        if run.info.status != "FINISHED":
            self._log(store, version, run_id, at_ms)
            self.client.set_terminated(run_id)
        return run_id

    def _log(self, store: ArtifactStore, version: Version, run_id: str, at_ms: int) -> None:
        """Log what a version says of itself, and its adapter with its card; the same again where some is there."""
        from mlflow.entities import Metric, Param

        metrics = [Metric(name, value, at_ms, 0) for name, value in metrics_of_version(version).items()]
        params = [Param(name, value) for name, value in params_of_version(version).items()]
        self.client.log_batch(run_id, metrics, params)
        self.client.log_artifact(run_id, str(store.open_file(version.ref, RECORD_FILE)))
        self.client.log_artifacts(run_id, str(store.open_directory(version.adapter)), ADAPTER_FOLDER)
        with scratch_folder() as folder:
            card = folder / "README.md"  # what `mralign export` writes over the trainer's
            card.write_bytes(store.open_file(version.ref, CARD_FILE).read_bytes())
            self.client.log_artifact(run_id, str(card), ADAPTER_FOLDER)


def params_of_version(version: Version) -> dict[str, str]:
    """What a version was made of, by names that every version has alike: digests, and `kind/key/digest` by kind."""
    record = version.record
    return {
        "variant": record.variant,
        "base_model": record.base_model,
        "config_sha256": key_of(config=record.config),
        "trained_on.questions": str(record.trained_on.number),
        "trained_on.sha256": record.trained_on.sha256,
        "held_out.questions": str(record.held_out.number),
        "held_out.sha256": record.held_out.sha256,
        **{f"made_from.{kind}": path for kind, path in record.made_from.items()},
    }


def metrics_of_version(version: Version) -> dict[str, float]:
    """Its scores, in shares: `acc` over all questions, `acc/STRATUM` of a part, `on/acc` of the model before; and cost.

    What isn't defined is left out. A name is what MLflow takes; one that is too long for it, or that another score
    would have too, ends in a digest of what it was made from.
    """
    record = version.record
    found: dict[tuple[str, ...], float] = {("cost_usd",): record.cost_usd}
    for row in record.scores:
        parts = [] if row["variant"] == record.variant else [row["variant"]]
        stratum = [] if row["stratum"] == record.scores[0]["stratum"] else [row["stratum"]]
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[(*parts, name, *stratum)] = float(value)
    num_so_named = Counter(map(_metric_name, found))
    return {
        _metric_name(parts, has_digest=num_so_named[_metric_name(parts)] > 1): value for parts, value in found.items()
    }


def _metric_name(parts: tuple[str, ...], has_digest: bool = False) -> str:
    name = "/".join(UNFIT.sub("_", part) or "none" for part in parts)
    if has_digest or len(name.encode()) > LONGEST_METRIC:
        start = name.encode()[: LONGEST_METRIC - DIGEST_DIGITS - 1].decode(errors="ignore")
        return f"{start}-{key_of(parts=parts)[:DIGEST_DIGITS]}"
    return name


def _tags(store: ArtifactStore, version: Version) -> dict[str, str]:
    return {
        "mralign.store": store.root_uri,
        "mralign.variant": version.record.variant,
        "mralign.base_model": version.record.base_model,
        "mralign.adapter_sha256": version.adapter.sha256,
    }


def _client(uri: str) -> MlflowClient:
    """A client of MLflow's that tells nobody else; importing it takes seconds."""
    os.environ.update(SETTINGS)
    for name, value in DEFAULT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _pages(search: Any, query: str) -> Iterator[Any]:
    page = search(query)
    yield from page
    while page.token:
        page = search(query, page_token=page.token)
        yield from page


def _unless_missing(get: Any, name: str) -> Any:
    """What a registry has by a name; None where it has none."""
    from mlflow.exceptions import MlflowException

    try:
        return get(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None

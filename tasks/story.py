"""The story of a run, where its user looks: one page, a bar with the time that is left, a line of the log a stage.

All of it is for the eye: a server or a store that can't take it does not stop the work.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import MarkdownArtifact
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL

from mralign_core.config import RunConfig, TrainConfig, load_config
from mralign_core.config.presets import PRESETS
from mralign_core.redaction import redact
from mralign_core.reporting.diagnostic_findings import discrimination_sentences
from mralign_core.reporting.run_findings import headline, read_results, result_tables, sentences, why_no_results
from mralign_core.reporting.run_page import (
    Finding,
    StageStory,
    changed_fields,
    duration,
    run_page,
    share_done,
    time_left,
)
from mralign_core.reporting.server_paths import IDENTITY_PATH
from mralign_core.reporting.shown_files import address_of
from mralign_core.reporting.store_addresses import view_address
from mralign_core.retention.runs import paid_by_run
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.versions.aliases import version_name
from tasks.engine import STAGES
from tasks.engine.graph import stage_of
from tasks.engine.last_run import LastRun, this_run
from tasks.engine.pages import artifacts_on_page, kept_fresh, not_stopping, put_on_page
from tasks.engine.progress import ShownProgress
from tasks.estimate import read_diagnostics

logger = logging.getLogger("mralign_core.story")
PAGE, BAR = "run", "run-progress"
ABOUT_PAGE = "The run: what it found, where it is, what differs from its preset"
REFRESH_S = 15.0
P = ParamSpec("P")
R = TypeVar("R")


class Story:
    """Tells what the stages of a run do, as they are run by :meth:`stage`.

    Args:
        config: the run config.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._store = ArtifactStore(config.storage)
        self._started = datetime.now(UTC)
        self._told: list[StageStory] = []
        context = FlowRunContext.get()
        self._run = context.flow_run.id if context and context.flow_run else None
        self._preset, self._changes = _differences(config)
        self._usual_s = self._read_times()
        changed = ", ".join(field for field, *_ in self._changes) or "nothing"
        logger.info("config %s: differs from preset %s in %s", config.name, self._preset, changed)
        self._show()

    def stage(self, run_stage: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage, and tell what it came to."""
        name, started = str(getattr(run_stage, "name", "")), time.monotonic()
        with _bar(self._run, lambda: self._progress(name, time.monotonic() - started)):
            result = run_stage(*args, **kwargs)
        with not_stopping("stage"):
            self._tell(name, time.monotonic() - started)
        return result

    def end(self) -> None:
        """Tell what was found and where it is."""
        with not_stopping("end"):
            found = self._finding()
            logger.info("%s", found.headline)
            made = LastRun(self._config, this_run())
            logger.info("report: %s", self._store.open_file(made("report"), "report.html"))
            total = sum(story.seconds for story in self._told)
            logger.info("all stages: %s, $%.2f paid", duration(total), sum(story.cost_usd for story in self._told))
            self._show(found)

    def _tell(self, name: str, seconds: float) -> None:
        record = LastRun(self._config, this_run()).record
        refs = {each: ref for each, ref in (record.artifacts if record else {}).items() if stage_of(each) == name}
        manifests = {each: self._store.manifest(ref) for each, ref in refs.items()}
        made = {each: found.rows for each, found in manifests.items() if found.created_at >= self._started}
        cached = {each: found.rows for each, found in manifests.items() if each not in made}
        paid_before = sum(each.cost_usd for each in self._told)
        story = StageStory(name, seconds, made, cached, paid_by_run(self._store, this_run()) - paid_before)
        self._told.append(story)
        logger.info("%s", story.line())
        if made:
            self._usual_s[name] = seconds
            self._store.put_json(self._times, {"seconds": self._usual_s})
        self._show()

    def _progress(self, name: str, under_way_s: float) -> tuple[float, str]:
        """How much of the run is done, in per cent, and in words."""
        waiting = [stage for stage in STAGES if stage not in {story.stage for story in self._told}]
        done = [story.stage for story in self._told]
        words = f"stage {len(done) + 1} of {len(STAGES)}, {name}: {time_left(waiting, self._usual_s, under_way_s)}"
        return share_done(done, waiting, self._usual_s, under_way_s), words

    def _show(self, found: Finding | None = None) -> None:
        with not_stopping("page"):
            text = run_page(
                name=self._config.name,
                preset=self._preset,
                changes=self._changes,
                stages=self._told,
                found=found,
                curves=_curves(self._config.train, self._config.name),
            )
            if self._run:
                put_on_page(self._run, MarkdownArtifact(key=PAGE, description=ABOUT_PAGE, markdown=redact(text)))

    def _finding(self) -> Finding:
        config, store, made = self._config, self._store, LastRun(self._config, this_run())
        measured = read_results(store.open_directory(made("results")))
        places = {"Report": _linked(config, made("report"), "report.html")}
        for variant in config.train.variants:
            places[f"Adapter {variant}"] = f"`{store.open_directory(made(f'adapter:{variant}'))}`"
            if config.questions.eval:
                places[f"Version {variant}"] = f"`{version_name(f'{variant}-' + made(f'version:{variant}').key)}`"
        if _is_behind_door():
            places["Cases"] = (
                f"[traces, labels, weights, draws and answers]({view_address(config.storage, this_run())})"
            )
        places["Artifacts of this run"] = ", ".join(self._others()) or "none"
        about_labels = discrimination_sentences(read_diagnostics(store, made("diagnostics")))
        if measured is None:
            return Finding(
                why_no_results(config.questions, has_judge=bool(config.judge.endpoints)), about_labels, [], places
            )
        found = [text for _, text in sentences(*measured, config.evaluate.confidence)]
        return Finding(headline(*measured), [*found, *about_labels], result_tables(*measured), places)

    def _others(self) -> list[str]:
        """The run's other artifacts as links, which lead there from the artifact's page in both UIs."""
        found = artifacts_on_page(self._run) if self._run else []
        ordered = sorted((each for each in found if each.key not in (PAGE, BAR)), key=lambda each: str(each.created))
        return [f"[{each.key}]({each.id})" for each in ordered]

    @property
    def _times(self) -> str:
        return f"stage-times/{self._config.name}"

    def _read_times(self) -> dict[str, float]:
        with not_stopping("times"):
            return dict((self._store.get_json(self._times) or {}).get("seconds", {}))
        return {}


@contextlib.contextmanager
def _bar(run: UUID | None, progress: Callable[[], tuple[float, str]]) -> Iterator[None]:
    """A progress artifact of the whole run, refreshed while a stage is under way."""
    if run is None:
        yield
        return
    shown = ShownProgress(run)

    def show() -> None:
        percent, words = progress()
        shown.publish(BAR, words, percent)

    with kept_fresh("bar", show, REFRESH_S, shown.remove):
        yield


def _curves(section: TrainConfig, name: str) -> str:
    """Where the curves of a run's trainings are to be seen, as Markdown; "" where they are nowhere but here."""
    if section.report_to == "tensorboard":
        folder = Path(section.log_folder).expanduser().resolve() / name
        return f"TensorBoard: `tensorboard --logdir {folder}`, on the host that trains"
    return f"Weights & Biases: runs `{name}/…`" if section.report_to == "wandb" else ""


def _linked(config: RunConfig, ref: ArtifactRef, file: str) -> str:
    """A file of an artifact as Markdown: where it lies, and, on this project's server, where a browser shows it."""
    path = f"`{ArtifactStore(config.storage).open_file(ref, file)}`"
    return f"[{file}]({address_of(config.storage, ref, file)}), {path}" if _is_behind_door() else path


def _is_behind_door() -> bool:
    """Whether the Prefect server is that of ``make serve``, which shows pages and figures."""
    api = PREFECT_API_URL.value() or ""  # none where a flow was called with a server of its own
    asked = f"{api.removesuffix('/api')}{IDENTITY_PATH}?challenge={secrets.token_hex(16)}"
    try:
        return "proof" in httpx.get(asked, timeout=5, trust_env=False).json()
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


def _differences(config: RunConfig) -> tuple[str, list[list[str]]]:
    """The preset of a run, and what its config changes of it: the one that its form names, else that of its name."""
    context = FlowRunContext.get()
    given = (context.flow_run.parameters if context and context.flow_run else {}).get("config", {})
    name = given.get("preset") if isinstance(given, Mapping) else None
    path = PRESETS / f"{name or config.name}.yaml"
    preset = load_config(path) if path.is_file() else RunConfig.model_construct()
    shown = path.stem if path.is_file() else "the defaults"
    return shown, changed_fields(config.model_dump(mode="json"), preset.model_dump(mode="json"))

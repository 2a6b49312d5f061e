"""Tables and figures as artifacts, each once, on the Prefect page of the run that its user started.

They are for the eye: a server that can't take one must not stop the work, so failures are logged and passed
over.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import ParamSpec
from uuid import UUID

import pandas as pd
from matplotlib.figure import Figure
from prefect.artifacts import Artifact, ImageArtifact, MarkdownArtifact, TableArtifact
from prefect.context import FlowRunContext

from mralign_core.config import RunConfig
from mralign_core.generation.outcomes import PARTLY_DRAWN
from mralign_core.label_sets import label_set_of
from mralign_core.reporting import agreement_figures, diagnostic_findings, figures, matrix_figures, page_tables, style
from mralign_core.reporting.agreement_tables import agreement_markdown
from mralign_core.reporting.decision_findings import decision_sentences, decision_tables, read_decisions
from mralign_core.reporting.diagnostic_figures import DIAGNOSTIC_CHARTS
from mralign_core.reporting.distillation_page import distillation_markdown
from mralign_core.reporting.distillation_tables import escalation_table, scores_table
from mralign_core.reporting.induction_findings import counts_sentence, label_table
from mralign_core.reporting.judged_findings import judged_notes, judged_tables, read_judged
from mralign_core.reporting.paper_tables import ablation_page
from mralign_core.reporting.promotion_findings import promotion_markdown
from mralign_core.reporting.result_table import BOLD, ResultTable
from mralign_core.reporting.retraining_trend import trend, weeks
from mralign_core.reporting.run_findings import panel_metrics, read_results, result_tables, why_no_results, yield_table
from mralign_core.reporting.set_table import set_table
from mralign_core.reporting.side_by_side import side_by_side_markdown
from mralign_core.reporting.token_table import read_mean_tokens, token_table
from mralign_core.reporting.training_health import health_lines, health_markdown, read_trainings
from mralign_core.retraining.history import DECIDED, Retrainings
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.training.doctor import find_faults
from mralign_core.versions.aliases import named_by_aliases
from mralign_core.versions.version import Version, read_versions
from tasks.ablate import FOREST_PNG, read_ablation, write_ablation
from tasks.annotate import read_ledger
from tasks.compare_annotators import read_agreement
from tasks.distil_annotator import read_measured, teacher_of
from tasks.engine.pages import put_on_page
from tasks.engine.session import root_flow_run_id
from tasks.estimate import read_diagnostics, transitions_of
from tasks.generate import FUNNEL, read_draws
from tasks.induce_taxonomy import LABEL_SET, MAP_PNG, read_clusters
from tasks.retrain import read_promotion

logger = logging.getLogger("mralign_core.publish")
SEE_DOCTOR = "`mralign doctor` says the same in a terminal; docs/doctor.md says what each rule looks at."
P = ParamSpec("P")


def for_the_eye(show: Callable[P, None]) -> Callable[P, None]:
    """Show only inside a flow run, and let no failure out."""

    @functools.wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        if FlowRunContext.get() is None:
            return
        try:
            show(*args, **kwargs)
        except Exception as error:
            logger.warning("%s: nothing shown on the run's page: %s", show.__name__, error)

    return shown


@for_the_eye
def show_yield(config: RunConfig, candidates: ArtifactRef) -> None:
    """What each step of the selection kept."""
    store = ArtifactStore(config.storage)
    rows = store.read_json(candidates, FUNNEL)
    _table("yield", yield_table(rows), "What each step of the selection kept, dropped, and why")
    _image("yield-figure", figures.yield_funnel(pd.DataFrame(rows)), "Yield of the selection")


@for_the_eye
def show_yield_of_draws(config: RunConfig, thinking_draws: ArtifactRef) -> None:
    """What each step kept of the think-on draws that matrices are estimated from."""
    rows = ArtifactStore(config.storage).read_json(thinking_draws, FUNNEL)
    _table("yield-of-draws", yield_table(rows), f"What each step kept of the think-on draws: {config.estimate.traces}")


@for_the_eye
def show_draws(config: RunConfig, generations: ArtifactRef) -> None:
    """What became of the draws."""
    counts = read_draws(ArtifactStore(config.storage), generations)
    note = PARTLY_DRAWN if config.generate.draws == "sequential" else "All draws of every question"
    _table("draws", page_tables.draw_counts(counts), note)


@for_the_eye
def show_labels(config: RunConfig, candidates: ArtifactRef, annotations: ArtifactRef) -> None:
    """The label mix, and which rule decided."""
    store = ArtifactStore(config.storage)
    labels = store.read_columns(annotations, "annotations.parquet", ANNOTATIONS, ["trace_id", "labels", "rule"])
    traces = store.read_columns(candidates, "candidates.parquet", CANDIDATES, ["trace_id", "polarity"])
    polarities = dict(zip(traces["trace_id"], traces["polarity"], strict=True))
    _image(
        "label-mix",
        figures.label_mix(labels, polarities, label_set_of(config).taxonomy),
        "What segments do, by polarity",
    )
    _table("label-rules", page_tables.rule_counts(labels), "Rule that decided each segment")
    ledger = read_ledger(config, candidates)
    if not ledger.empty:
        _table("annotation-ledger", page_tables.ledger_table(ledger), "What each run asked of each model, and paid")


@for_the_eye
def show_transitions(config: RunConfig, transitions: ArtifactRef) -> None:
    """Heat-maps of P⁺ and P⁻ and of the weights they give."""
    matrices = transitions_of(ArtifactStore(config.storage), config, transitions)
    _image("transitions", matrix_figures.transition_heatmaps(matrices), "P⁺ and P⁻")
    _image("transition-weights", matrix_figures.weight_heatmaps(matrices), "Weights of single transitions")


@for_the_eye
def show_diagnostics(config: RunConfig, diagnostics: ArtifactRef, pictures: ArtifactRef) -> None:
    """How sure the weights are: sentences, tables and figures."""
    store = ArtifactStore(config.storage)
    found = read_diagnostics(store, diagnostics)
    sentences = "\n".join(f"- {line}" for line in diagnostic_findings.findings(found))
    tables = [
        f"### {title}\n\n{ResultTable.from_frame(frame).to_markdown()}"
        for title, frame in diagnostic_findings.tables(found).items()
    ]
    _page("diagnostics", "How sure are the weights?", sentences, *tables)
    for path in sorted(store.open_directory(pictures).glob("*.png")):
        _picture(f"diagnostics-{path.stem}", path.read_bytes(), DIAGNOSTIC_CHARTS[path.stem])


@for_the_eye
def show_weights(config: RunConfig, weights: ArtifactRef) -> None:
    """The distribution of segment weights."""
    frame = ArtifactStore(config.storage).read_table(weights, "weights.parquet")
    _table("weights", page_tables.weight_table(frame), "Segment weights (Eq. 10)")


@for_the_eye
def show_training(config: RunConfig, adapters: Mapping[str, ArtifactRef]) -> None:
    """Training curves."""
    store = ArtifactStore(config.storage)
    metrics = {name: store.read_table(ref, "metrics.parquet") for name, ref in adapters.items()}
    _image("training-curves", figures.training_curves(metrics), "Loss, implicit rewards and KL baseline by step")


@for_the_eye
def show_health(config: RunConfig, artifacts: Mapping[str, ArtifactRef]) -> None:
    """What is wrong with the trainings: on the page, and as warnings in the log, each once.

    Args:
        config: the run config.
        artifacts: of the run, by name: adapters, and scores once there are some, when what they tell is logged.
    """
    trainings = read_trainings(ArtifactStore(config.storage), artifacts)
    health = {variant: find_faults(record) for variant, record in trainings.items()}
    has_answers = any(name.startswith("scores:") for name in artifacts)
    unscored = {
        variant: find_faults(record._replace(answers_before=None, answers_after=None))
        for variant, record in trainings.items()
        if has_answers
    }
    told = health_lines(unscored)
    for line in health_lines(health):
        if line not in told:
            logger.warning("training doctor: %s", line)
    if health:
        _page("training-doctor", "What the training doctor says", health_markdown(health), SEE_DOCTOR)


@for_the_eye
def show_results(config: RunConfig, results: ArtifactRef, report: ArtifactRef) -> None:
    """The results table, and where the report is."""
    store = ArtifactStore(config.storage)
    measured = read_results(store.open_directory(results))
    if measured:
        tables = [*filter(None, [set_table(measured.summary)]), *result_tables(*measured)]
        parts = [*(table.to_markdown() for table in tables), BOLD]
        if decided := read_decisions(store.open_directory(results)):
            parts += [
                *decision_sentences(decided.decisions),
                *(t.to_markdown() for t in decision_tables(decided.decisions)),
            ]
        if len(measured.differences):
            figure = figures.difference_intervals(measured.differences, panel_metrics(measured.summary))
            _image("results-figure", figure, "Differences with paired intervals")
    else:
        parts = [why_no_results(config.questions, has_judge=bool(config.judge.endpoints))]
    if judged := read_judged(store.open_directory(results)):
        parts += [*(table.to_markdown() for table in judged_tables(judged)), *judged_notes(judged)]
    if (tokens := read_mean_tokens(store.open_directory(results))) is not None:
        parts.append(token_table(tokens).to_markdown())
    page = store.open_file(report, "report.html")
    _page("results", "What alignment changed on held-out questions", f"Report: `{page}`", *parts)


@for_the_eye
def show_agreement(config: RunConfig, agreement: ArtifactRef) -> None:
    """How far the annotation sets agree, and the figures of κ."""
    found = read_agreement(config, agreement)
    _page("agreement", "Agreement of annotation sets", agreement_markdown(found))
    if found["pairs"]:
        pairs, per_label = pd.DataFrame(found["pairs"]), pd.DataFrame(found["per_label"])
        _image("kappas", agreement_figures.kappa_matrices(pairs), "κ of every two annotation sets")
        _image("label-kappas", agreement_figures.label_kappas(per_label), "κ by label")


@for_the_eye
def show_label_set(config: RunConfig, label_set: ArtifactRef) -> None:
    """The labels that were induced, how they came about, and the map of their clusters."""
    found = read_clusters(config, label_set)
    file = ArtifactStore(config.storage).open_file(label_set, LABEL_SET)
    use = f"Use it with `annotate.label_set: {file}`."
    _page("label-set", "Induced label set", use, counts_sentence(found), label_table(found).to_markdown())
    if found["noise"]:
        noise = page_tables.open_label_counts(found["noise"])
        _table("label-set-noise", noise, "Open labels that are in no cluster, and their counts")
    picture = ArtifactStore(config.storage).open_file(label_set, MAP_PNG).read_bytes()
    _picture("cluster-map", picture, "Open labels by cosine distance, and the clusters among them")


@for_the_eye
def show_distilled(config: RunConfig, distillation: ArtifactRef, annotator: ArtifactRef) -> None:
    """What a distilled annotator can do, and how to use it; the page comes last, for a run's newest is listed first."""
    measured, name = read_measured(config, distillation), config.distil.name
    _table("distilled-labels", scores_table(measured.scores), "By label: how well it finds what its teacher gave")
    for what, curve in (("traces", measured.if_traces_go_on), ("segments", measured.if_segments_go_on)):
        told = f"If the {what} that it is least sure of go on to its teacher"
        _table(f"distilled-if-{what}-go-on", escalation_table(curve), told)
    key, teacher = f"{annotator.stage}/{annotator.key}", teacher_of(config, distillation)
    _page("distilled-annotator", f"Annotator local/{name}", distillation_markdown(measured, name, key, teacher))


@for_the_eye
def show_ablation(config: RunConfig, ablation: ArtifactRef) -> None:
    """What the arms of an ablation show, and their forest plot."""
    _page("ablation", "Paired differences between the arms", ablation_page(read_ablation(config, ablation)))
    store = ArtifactStore(config.storage)
    if page := write_ablation.work(config, ablation).find(store):
        picture = store.open_file(page, FOREST_PNG).read_bytes()
        _picture("ablation-figure", picture, "Differences with their intervals")


@for_the_eye
def show_promotion(config: RunConfig, promotion: ArtifactRef) -> None:
    """What the gate decided, and why."""
    found = read_promotion(ArtifactStore(config.storage), promotion)
    _page("promotion", "Whether the new model takes the champion's place", promotion_markdown(found))


@for_the_eye
def show_side_by_side(config: RunConfig, versions: Sequence[Version]) -> None:
    """Scores of versions side by side, and what differs in their configs."""
    named = named_by_aliases(ArtifactStore(config.storage))
    _page("compare", "Versions side by side", side_by_side_markdown(versions, named))


@for_the_eye
def show_trend(config: RunConfig) -> None:
    """What the models of the retrainings of this config's name moved, and what became of each."""
    store = ArtifactStore(config.storage)
    history = Retrainings(store, config.name).all()
    decided = {version.id: version.record for version in read_versions(store)}
    if told := weeks(history, decided):
        quiet = [one.at for one in history if one.outcome not in DECIDED]
        _image("trend", trend(told, quiet), f"Retrainings of {config.name}: what each new model moved, and the verdict")


@for_the_eye
def show_output(key: str, description: str, text: str) -> None:
    """What a command printed, as it is."""
    _page(key, description, f"```text\n{text.replace('```', '` ` `').rstrip()}\n```")


@for_the_eye
def show_picture(key: str, description: str, png: bytes) -> None:
    """A picture that a command drew."""
    _picture(key, png, description)


def _table(key: str, table: ResultTable, description: str) -> None:
    _publish(TableArtifact(key=key, description=description, table=page_tables.page_records(table)))


def _page(key: str, description: str, *parts: str) -> None:
    _publish(MarkdownArtifact(key=key, description=description, markdown="\n\n".join(parts)))


def _image(key: str, figure: Figure, description: str) -> None:
    _picture(key, style.to_png(figure), description)


def _picture(key: str, png: bytes, description: str) -> None:
    """Prefect shows pictures by address; a data address holds the picture itself."""
    data = base64.b64encode(png).decode()
    _publish(ImageArtifact(key=key, description=description, image_url=f"data:image/png;base64,{data}"))


def _publish(artifact: Artifact) -> None:
    """Show the artifact on the page of the run that its user started, or of a world of an ablation."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    root = UUID(root_flow_run_id())
    if context.flow_run.deployment_id and context.flow_run.id != root and _page_of.get() is None:
        return  # a share of a run's work on another pool: the stage that asked for it shows the whole
    put_on_page(_page_of.get() or root, artifact)


@contextlib.contextmanager
def own_page() -> Iterator[None]:
    """Show what is shown meanwhile on the page of this very run, as that of a world beside others of an ablation."""
    context = FlowRunContext.get()
    before = _page_of.set(context.flow_run.id if context and context.flow_run else None)
    try:
        yield
    finally:
        _page_of.reset(before)


_page_of: ContextVar[UUID | None] = ContextVar("page_of", default=None)

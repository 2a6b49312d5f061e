"""Scores of every variant on held-out questions, what they say, and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mralign_core.annotation.failures import FAILURES_FILE, read_failures, set_aside_rows
from mralign_core.config import RunConfig
from mralign_core.evaluation.decisions import decide, list_flips
from mralign_core.evaluation.held_out import (
    all_answers,
    answer_questions,
    by_benchmark,
    notes_on_answers,
    with_gold,
    with_strata,
)
from mralign_core.evaluation.metrics import paired_differences, summarize
from mralign_core.evaluation.self_refine import REFINE_PROMPTS, count_ends, note_on_chains, refine_answers
from mralign_core.evaluation.snippet_prompt import SNIPPET_PROMPT, with_snippets
from mralign_core.evaluation.token_costs import TOKENS_FILE, mean_tokens
from mralign_core.evaluation.variants import (
    SELF_REFINE,
    WITH_SNIPPETS,
    adapter_of,
    variants_to_judge,
    variants_to_score,
)
from mralign_core.generation import Sampler
from mralign_core.generation.outcomes import draws_table
from mralign_core.judging.verdicts import Judged, grade_differences, judging_costs, scored_answers, weigh_verdicts
from mralign_core.label_sets import label_set_of
from mralign_core.models.locate import model_name
from mralign_core.questions.guessable import notes_on_guessable
from mralign_core.reporting.decision_findings import DECISIONS_FILE, FLIPS_FILE, read_decisions
from mralign_core.reporting.inputs import annotation_costs, joined_failures, joined_ledger, set_aside
from mralign_core.reporting.judged_findings import baseline_notes, read_judged, write_judged
from mralign_core.reporting.people_findings import PeopleSection, people_section
from mralign_core.reporting.report import ReportInputs, render_report
from mralign_core.reporting.run_findings import Results, read_results
from mralign_core.reporting.token_table import read_mean_tokens
from mralign_core.schemas.flips import FLIPS
from mralign_core.schemas.refinements import REFINEMENTS
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.quarantine import read_quarantine, write_rows
from mralign_core.storage.tables import read_table, write_table
from tasks.annotate import TRACES_FILE, read_ledger, without_offline
from tasks.asked import Asked, asked
from tasks.clients import read_account, save_account, turn
from tasks.engine.graph import Input, Part, Shards
from tasks.engine.progress import progress
from tasks.engine.run import Built, Making, file_digests, span
from tasks.engine.shards import join, lay_out
from tasks.engine.task import artifact
from tasks.estimate import read_diagnostics, transitions_of, uses_draws
from tasks.fields import all_but, other_samplers, pick, reading, served_or_loaded, without_pocket
from tasks.generate import FUNNEL, notes_on_yield, read_draws
from tasks.held_out import labels_held_out
from tasks.judge import read_judge_failures, read_judge_ledger, read_judged_answers, read_judgements
from tasks.prepare import GUESSABLE
from tasks.sampling import sampler_of
from tasks.snippets import FILE as SNIPPETS_FILE

REFINEMENTS_FILE = "refinements.parquet"
"""Beside the scores of Self-Refine: every reply."""
OWN_SOURCES = {"mralign_core.evaluation.self_refine", "mralign_core.evaluation.snippet_prompt"}
"""Modules that decide the scores of some variants only."""
SOURCES = (
    "mralign_core.evaluation.held_out",
    *sorted(OWN_SOURCES),
    "mralign_core.generation.open_sampler",
    "mralign_core.models.load",  # finds the tokens that end a sample
)


def _evaluation(config: RunConfig) -> dict[str, Any]:
    return {
        **all_but(config.evaluate, "num_resamples", "confidence", "margin", "endpoint", "retrieval", "self_refine"),
        "instruction": config.generate.instruction,
        **served_or_loaded(config, config.evaluate),
        **reading(config),
        "seed": config.seed,
    }


def _of_variant(config: RunConfig, part: Part) -> dict[str, Any]:
    """What decides the scores of one variant and of no other."""
    if part["variant"] == SELF_REFINE:
        has_limit = config.evaluate.sampler == "vllm" or config.vllm.starts_for(config.evaluate)
        ends = {"max_model_len": config.vllm.max_model_len} if has_limit else {}  # chains end where it is reached
        return {"rounds": config.evaluate.self_refine.rounds, "prompt": REFINE_PROMPTS, **ends}
    return {"prompt": SNIPPET_PROMPT} if part["variant"] in WITH_SNIPPETS else {}


def _not_of_variant(part: Part) -> Sequence[str]:
    shows = {"mralign_core.evaluation.snippet_prompt"} if part["variant"] in WITH_SNIPPETS else set()
    refines = {"mralign_core.evaluation.self_refine"} if part["variant"] == SELF_REFINE else set()
    return sorted(OWN_SOURCES - shows - refines)


SCORED: dict[str, Any] = {
    "stage": "evaluate",
    "part": ("variant",),
    "fields": _evaluation,
    "details": _of_variant,
    "sources": SOURCES,
    "without": other_samplers(lambda config: config.evaluate.sampler),
    "without_of": _not_of_variant,
}
"""What decides scores, in a shard and joined."""
ADAPTER = Input(
    "adapter", when=lambda _, part: bool(adapter_of(part["variant"])), own_part="variant", own_value=adapter_of
)


def _reads_snippets(_: RunConfig, part: Part) -> bool:
    return part["variant"] in WITH_SNIPPETS


def _to_score(config: RunConfig, inputs: Mapping[str, ArtifactRef]) -> Asked:
    """The questions as a variant is asked them: with snippets where it reads any, which its items are known by then."""
    questions, snippets = inputs["evaluation-questions"], inputs.get("snippets")
    if snippets is None:
        return asked(config, questions, by_benchmark)

    def with_their_snippets(frame: pd.DataFrame) -> pd.DataFrame:
        found = ArtifactStore(config.storage).read_table(snippets, SNIPPETS_FILE)
        return with_snippets(by_benchmark(frame), found)

    return asked(config, questions, with_their_snippets, beside=[snippets])


@artifact(
    "scores-shard",
    run_name="evaluate {variant} {rows}",
    inputs=(
        Input("evaluation-questions", is_keyed=False),
        Input("model"),
        ADAPTER,
        Input("snippets", when=_reads_snippets, is_keyed=False),
    ),
    items=lambda config, inputs: _to_score(config, inputs).items,
    is_main=lambda _: True,
    **SCORED,
)
def score_shard(making: Making) -> Built:
    """Answer some held-out questions with one variant."""
    config, variant, rows = making.config, making.part["variant"], making.work.rows
    questions = _to_score(config, making.work.inputs).questions.iloc[list(rows)]
    ledger_name = scoring_ledger_name(making["evaluation-questions"])
    try:
        sampler = sampler_of(
            making.store,
            config,
            making["model"],
            stage="evaluate",
            adapter=making.get("adapter"),
            variant=adapter_of(variant) or variant,
            ledger_name=ledger_name,
        )
        with turn(making.store, ledger_name, config.evaluate):
            scores = _scored(making, sampler, questions)
    finally:  # what was asked is on account, also where the server failed or the budget is used up
        if config.evaluate.sampler == "endpoint":
            save_account(making.store, ledger_name, config.evaluate)
    write_rows(making.directory, "scores.parquet", scores, SCORES)
    return Built(SCORES.name)


def scoring_ledger_name(questions: ArtifactRef) -> str:
    """One account for all answers to these questions that servers give, of whatever variant."""
    return f"evaluate/{questions.sha256}"


def _scored(making: Making, sampler: Sampler, questions: pd.DataFrame) -> pd.DataFrame:
    """The scores of a variant on some questions; of Self-Refine, every reply is written."""
    config, variant = making.config, making.part["variant"]
    key = f"evaluate-{re.sub('[^a-z0-9]', '-', variant)}"
    common: dict[str, Any] = {"seed": config.seed, "rules": config.match.rules}
    with progress(f"evaluating {variant} {span(making.work.rows)}", key) as report:
        if variant == SELF_REFINE and (rounds := config.evaluate.self_refine.rounds) is not None:
            scores, refinements = refine_answers(
                sampler, questions, config.evaluate, rounds=rounds, **common, on_progress=report
            )
            write_rows(making.directory, REFINEMENTS_FILE, refinements, REFINEMENTS)
            return scores
        return answer_questions(sampler, questions, variant, config.evaluate, **common, on_progress=report)


@artifact(
    "scores",
    run_name="collect scores of {variant}",
    parts=lambda config: [{"variant": variant} for variant in variants_to_score(config)],
    inputs=(Input("evaluation-questions"), Input("model"), ADAPTER, Input("snippets", when=_reads_snippets)),
    shards=Shards("scores-shard", lambda config: config.evaluate.shard_size),
    **SCORED,
)
def collect_scores(making: Making) -> Built:
    """Join the scores of a variant on all held-out questions."""
    layout = lay_out(making.work, making.store)
    replies = {REFINEMENTS_FILE: REFINEMENTS} if making.part["variant"] == SELF_REFINE else {}
    join(making.store, layout, making.directory, {"scores.parquet": SCORES, **replies}, "question_id")
    questions = _to_score(making.config, making.work.inputs).questions
    scores = with_strata(read_table(making.directory / "scores.parquet"), questions)
    write_table(making.directory, "scores.parquet", scores, SCORES)
    counts = count_ends(read_table(making.directory / REFINEMENTS_FILE)) if replies else {}
    return Built(SCORES.name, counts)


@artifact(
    "results",
    stage="evaluate",
    inputs=(
        Input("scores", each=variants_to_score),
        Input("judgements", each=variants_to_judge),
        Input("evaluation-questions"),
    ),
    fields=lambda config: {
        **pick(config.evaluate, "num_resamples", "confidence", "margin"),
        "seed": config.seed,
        "judges": [endpoint.model for endpoint in config.judge.endpoints],  # the first decides in a tie
    },
    sources=(
        "mralign_core.evaluation.decisions",
        "mralign_core.evaluation.metrics",
        "mralign_core.evaluation.held_out",
        "mralign_core.evaluation.token_costs",
        "mralign_core.judging.verdicts",
        "mralign_core.annotation.failures",
    ),
    without=other_samplers(lambda _: ""),
)
def compute_results(making: Making) -> Built:
    """Compute the metrics of each variant, their paired differences with intervals, and what these decide."""
    section, answers = making.config.evaluate, _answers(making)
    judged = _judged(making, answers)
    if answers is not None and not (scored := scored_answers(answers, judged)).empty:
        rng = np.random.default_rng([making.config.seed, 6])
        differences = paired_differences(
            scored, num_resamples=section.num_resamples, confidence=section.confidence, rng=rng
        )
        for name, frame in Results(summarize(scored), differences)._asdict().items():
            frame.to_json(making.directory / f"{name}.json", orient="records", indent=1)
        decisions = decide(
            scored,
            differences,
            margin=section.margin,
            confidence=section.confidence,
            rng=np.random.default_rng([making.config.seed, 9]),
        )
        decisions.to_json(making.directory / DECISIONS_FILE, orient="records", indent=1)
        flips = list_flips(scored, making.table("evaluation-questions", "questions.parquet"))
        write_table(making.directory, FLIPS_FILE, flips, FLIPS)
    if judged is not None:
        differences = grade_differences(
            judged.verdicts,
            num_resamples=section.num_resamples,
            confidence=section.confidence,
            rng=np.random.default_rng([making.config.seed, 7]),
        )
        write_judged(making.directory, judged, differences)
    if answers is not None:
        mean_tokens(answers).to_json(making.directory / TOKENS_FILE, orient="records", indent=1)
    (making.directory / "variants.json").write_text(json.dumps(list(making.several("scores"))), encoding="utf-8")
    return Built(counts={"variants": len(making.several("scores"))})


def _people_sheet(config: RunConfig, _: Part) -> dict[str, str]:
    """The content of what people filled in, and not its place; one that has gone is not none."""
    sheet = config.evaluate.people_sheet
    return {"people_sheet": "missing", **file_digests(people_sheet=sheet)} if sheet else {}


@artifact(
    "report",
    stage="evaluate",
    options=("paid_for",),
    inputs=(
        Input("questions"),
        Input("evaluation-questions"),
        Input("model"),
        Input("generations", when=lambda config, _: config.generate.source == "sample"),
        Input("candidates"),
        Input("annotations"),
        Input("thinking-draws", when=uses_draws),
        Input("draw-annotations", when=uses_draws),
        Input("transitions"),
        Input("diagnostics"),
        Input("weights"),
        Input("adapter", each=lambda config: config.train.variants),
        Input("scores", each=variants_to_score),
        Input("judgements", each=variants_to_judge),
        Input("results"),
        Input("held-out-traces", when=labels_held_out),
        Input("held-out-annotations", when=labels_held_out),
    ),
    fields=RunConfig.fingerprint,
    details=_people_sheet,
    sources=(
        "mralign_core.reporting.report",
        "mralign_core.reporting.inputs",
        "mralign_core.generation.funnel",
        "mralign_core.annotation.failures",
        "mralign_core.evaluation.held_out",
        "mralign_core.evaluation.self_refine",
        "mralign_core.llm.ledger",
        "mralign_core.llm.offline",
        "mralign_core.models.locate",
        "mralign_core.questions.guessable",
    ),
    without=lambda config: (*other_samplers(lambda _: "")(config), *without_pocket(config)),
)
def write_report(making: Making) -> Built:
    """Write the page to look at; its bill has what labels cost that are not whole (``paid_for``), too."""
    (making.directory / "report.html").write_text(render_report(gather(making)), encoding="utf-8")
    return Built(counts={"variants": len(making.several("scores"))})


def gather(making: Making) -> ReportInputs:
    """Read everything that the report shows."""
    config, store = making.config, making.store
    answers = _answers(making)
    scored = with_gold(answers) if answers is not None else None
    scored = None if scored is None or scored.empty else scored
    questions = making.table("evaluation-questions", "questions.parquet")
    measured = store.open_directory(making["results"])
    results, decided = read_results(measured), read_decisions(measured)
    labels = [name for name in ("annotations", "draw-annotations", "held-out-annotations") if making.get(name)]
    thinking_draws = making.get("thinking-draws")
    judgements = read_judgements(store, making.several("judgements"))
    judged = read_judged(measured)
    partly_paid = making.options.get("paid_for")
    traces = [making["candidates"], *filter(None, [thinking_draws, making.get("held-out-traces"), partly_paid])]
    accounts = [
        *(read_ledger(config, ref) for ref in traces),
        read_scoring_ledger(config, making["evaluation-questions"]),
    ]
    failures = joined_failures(*(read_failures(making.file(name, FAILURES_FILE)) for name in labels))
    quarantined = [row for ref in making.work.inputs.values() for row in read_quarantine(store, ref)]
    return ReportInputs(
        run={
            "model": model_name(config.model),
            "seed": str(config.seed),
            "held-out questions": str(len(questions)),
            "annotators": ", ".join(endpoint.model for endpoint in config.annotate.endpoints.values()),
        },
        is_pocket=config.model.source == "pocket",
        notes=[
            *notes_on_yield(config, making["candidates"]),
            *notes_on_answers(config, store.manifest(making["questions"]).counts, answers),
            *baseline_notes(judged),
            *notes_on_refining(making),
            *notes_on_guessable(store.manifest(making["evaluation-questions"]).counts, config.questions.on_guessable),
        ],
        funnel=pd.DataFrame(store.read_json(making["candidates"], FUNNEL)),
        draws_funnel=pd.DataFrame(store.read_json(thinking_draws, FUNNEL)) if thinking_draws else None,
        draws=draws_table(read_draws(store, draws)) if (draws := making.get("generations")) else None,
        draws_are_partial=config.generate.draws == "sequential",
        candidates=making.table("candidates", TRACES_FILE),
        annotations=making.table("annotations", "annotations.parquet"),
        transitions=transitions_of(store, config, making["transitions"]),
        diagnostics=read_diagnostics(store, making["diagnostics"]),
        segment_weights=making.table("weights", "weights.parquet"),
        training={name: store.read_table(ref, "metrics.parquet") for name, ref in making.several("adapter").items()},
        scores=scored,
        held_out_traces=making.table_if_read("held-out-traces", TRACES_FILE),
        held_out_annotations=making.table_if_read("held-out-annotations", "annotations.parquet"),
        questions=questions,
        rules=config.match.rules,
        summary=results.summary if results else None,
        guessable=pd.DataFrame(store.read_json(making["evaluation-questions"], GUESSABLE)),
        tokens=read_mean_tokens(measured),
        differences=results.differences if results else None,
        decisions=decided.decisions if decided else None,
        flips=decided.flips if decided else None,
        confidence=config.evaluate.confidence,
        costs=annotation_costs(*(making.table(name, "raw_annotations.parquet") for name in labels)),
        ledger=without_offline(joined_ledger(*accounts)),
        judged=judged,
        people=_people(making),
        judging_costs=judging_costs(judgements) if judgements else None,
        judging_ledger=without_offline(read_judge_ledger(config, making["evaluation-questions"])),
        quarantine=set_aside(quarantined, set_aside_rows(failures)),
        artifacts={name.replace(":", " "): ref.sha256 for name, ref in _shown(making).items()},
        config=config.fingerprint(),
        taxonomy=label_set_of(config).taxonomy,
    )


def read_scoring_ledger(config: RunConfig, questions: ArtifactRef) -> pd.DataFrame:
    """What each run paid for answers to these questions: ``run, model`` and the fields of a ledger's ``Usage``."""
    return read_account(ArtifactStore(config.storage), scoring_ledger_name(questions))


def notes_on_refining(making: Making) -> list[str]:
    """How Self-Refine came to its answers, where it answered."""
    refined = making.several("scores").get(SELF_REFINE)
    return [] if refined is None else [note_on_chains(making.store.read_table(refined, REFINEMENTS_FILE))]


def _shown(making: Making) -> dict[str, ArtifactRef]:
    """The artifacts whose digests the report shows."""
    return {
        name: ref
        for name, ref in making.work.inputs.items()
        if not name.startswith(("scores:", "judgements:", "results"))
    }


def _judged(making: Making, answers: pd.DataFrame | None) -> Judged | None:
    """What the judges say of all variants; None where no judge is named."""
    store, refs = making.store, making.several("judgements")
    if answers is None or not refs:
        return None
    judges = [endpoint.model for endpoint in making.config.judge.endpoints]
    return weigh_verdicts(read_judgements(store, refs), read_judge_failures(store, refs), answers, judges)


def _people(making: Making) -> PeopleSection | None:
    """What people say of the judges; None where no sheet is named."""
    config = making.config
    if not config.evaluate.people_sheet:
        return None
    run = read_judged_answers(config, making.several("scores"), making.several("judgements"))
    return people_section(run, config, Path(config.evaluate.people_sheet))


def _answers(making: Making) -> pd.DataFrame | None:
    """The scores of all variants; None where no question is held out."""
    tables = [making.store.read_table(ref, "scores.parquet") for ref in making.several("scores").values()]
    return all_answers(tables)

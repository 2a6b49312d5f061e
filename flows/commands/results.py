"""What the command line prints: plans, quotes, results, with the paths to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.commands.server import ServerAddress
from mralign_core.config import RunConfig

if TYPE_CHECKING:
    from mralign_core.annotation.quoting import Quote
    from mralign_core.reporting.result_table import ResultTable
    from mralign_core.storage import ArtifactRef
    from tasks.engine.plan import Plan

console = Console()
STYLES = {"better": "green", "worse": "red", "open": "dim"}
"""Tone of a difference → how it is shown."""
MOST_ROWS = 12
"""Of one kind of artifact in a plan; more are counted."""


def print_questions(config: RunConfig) -> None:
    """What a run would ask: each set with an example, and what is taken out because it is evaluated on."""
    from mralign_core.intake import resolve
    from mralign_core.questions.loading import read_question_sets
    from mralign_core.questions.overlap import question_key
    from mralign_core.storage import ArtifactStore

    resolved = resolve(config, ArtifactStore(config.storage)).config
    found = read_question_sets(resolved.questions, config.model.pocket, config.judge)
    columns = ("used to", "set", "questions", "distinct", "gold answers each", "example")
    table = Table(*columns, title=f"config {config.name!r}: question sets")
    for (split, source), rows in found.questions.groupby(["split", "source"], sort=False):
        first = rows.iloc[0]
        example = f"{first['question']:.60} → {', '.join(first['answers']) or 'no gold answer':.40}"
        counts = (f"{len(rows):,}", f"{rows['question'].map(question_key).nunique():,}")
        golds = f"{rows['answers'].map(len).mean():.1f}"
        table.add_row("align" if split == "train" else "evaluate", source, *counts, golds, escape(example))
    console.print(table)
    for row in found.overlap.itertuples():
        text = f"{row.question_id} is {row.eval_question_id}: {row.question}"
        console.print(f"[yellow]taken out[/yellow] {escape(text)}", highlight=False, soft_wrap=True)


def print_plan(config: RunConfig, tokens_per_second: float | None = None) -> None:
    """What is in the store and what a run would compute, what sampling would take, and what annotation would cost."""
    from tasks.engine.plan import plan

    planned_run = plan(config)
    table = Table("stage", "artifact", "status", "key", title=f"config {config.name!r}: nothing is run")
    for kind, grouped in groupby(planned_run.everything, key=lambda planned: (planned.stage, planned.name.split()[0])):
        group = list(grouped)
        if len(group) > MOST_ROWS:
            states = Counter(planned.status for planned in group)
            status = ", ".join(f"{count} {state}" for state, count in states.most_common())
            table.add_row(kind[0], f"{kind[1]} ({len(group)})", status, "", style="dim" if len(states) == 1 else "")
            continue
        for planned in group:
            key = planned.found.key[:12] if planned.found else ""
            table.add_row(planned.stage, planned.name, planned.status, key, style="dim" if planned.found else "")
    console.print(table)
    if tokens_per_second:
        _print_load(config, planned_run, tokens_per_second)
    _print_trace_logps(config, planned_run)
    _print_quote(config, planned_run)
    if config.judge.endpoints:
        _print_judges_quote(config, planned_run)
    _print_accounts_of_arms(config)


def _print_accounts_of_arms(config: RunConfig) -> None:
    """That an ablation may spend a ceiling several times; nothing where its arms have one model and file of traces."""
    if (number := config.ablate.num_accounts) > 1:
        console.print(
            f"this is of the run alone: arms of its ablation (ablate.arms) have {number} models or files of traces, "
            "and annotate.budget_usd and generate.budget_usd hold for each (docs/ablations.md)",
            highlight=False,
        )


def _print_trace_logps(config: RunConfig, planned_run: Plan) -> None:
    """What ``train.trace_logps`` costs of what is not there yet; nothing where it is off."""
    missing = [
        each.name.split()[-1] for each in planned_run.everything if "policy-logps" in each.name and not each.found
    ]
    if not missing:
        return
    traces, candidates = "the traces", planned_run.made.get("candidates")
    if candidates:
        traces = f"{candidates.rows:,} traces"
    share = 1 / (4 * config.train.num_epochs)
    console.print(
        f"train.trace_logps: one forward pass over {traces} for each of {', '.join(missing)}, about {share:.0%} of "
        "what its training takes",
        highlight=False,
    )


def _print_load(config: RunConfig, planned_run: Plan, tokens_per_second: float) -> None:
    from tasks.generate import sampling_load

    if config.generate.source == "traces" or "questions" not in planned_run.made:
        console.print("sampling: its load can be told once the questions are loaded (--only prepare)", highlight=False)
        return
    sampled = [each.found for each in planned_run.everything if each.found and each.name.startswith("generations")]
    found = sampling_load(config, planned_run.made["questions"], sampled, tokens_per_second)
    table = Table("hosts", "shards", "task runs", "draws", "M tokens", "GB stored", "hours", title="sampling, in all")
    for num_hosts, load in found.by_hosts.items():
        counts = (f"{num_hosts}", f"{load.shards:,}", f"{load.task_runs:,}", f"{load.draws:,.0f}")
        table.add_row(*counts, f"{load.tokens / 1e6:,.1f}", f"{load.gigabytes:.1f}", f"{load.hours:.1f}")
    console.print(table)
    source = "measured on the shards that are there" if found.is_measured else "assumed: no shard has been sampled yet"
    (load, *_), rates = found.by_hosts.values(), found.rates
    console.print(
        f"{load.questions:,} questions, {rates.draws:.2f} draws and {rates.tokens:,.0f} tokens a question, {source}; "
        f"{tokens_per_second:,.0f} tokens a second and host, as given.",
        highlight=False,
    )


def _print_quote(config: RunConfig, planned_run: Plan) -> None:
    from tasks.annotate import quote_annotations, quote_draws

    made = planned_run.made
    if "candidates" not in made:
        console.print("annotation: requests and dollars can be told once the candidates are there", highlight=False)
        return
    quotes, spent_usd = quote_annotations(config, made["candidates"])
    _print_requests("annotation, still to ask", quotes)
    if config.estimate.uses_draws and "thinking-draws" not in made:
        console.print("of the thinking draws it can be told once they are there (--only generate)", highlight=False)
    elif config.estimate.uses_draws:
        of_draws, spent_on_draws_usd = quote_draws(config, made["thinking-draws"], made["candidates"])
        _print_requests(f"annotation of further draws (estimate.traces: {config.estimate.traces})", of_draws)
        quotes, spent_usd = [*quotes, *of_draws], spent_usd + spent_on_draws_usd
    of_held_out, spent_on_held_out_usd = _held_out_quotes(config, planned_run)
    quotes, spent_usd = [*quotes, *of_held_out], spent_usd + spent_on_held_out_usd
    least, most = (sum(getattr(quote, name) for quote in quotes) for name in ("cost_usd", "most_cost_usd"))
    budget = config.annotate.budget_usd
    ceiling = "no ceiling is set (annotate.budget_usd)" if budget is None else f"annotate.budget_usd is {budget:.2f}"
    console.print(
        f"{least:.2f} to {most:.2f} dollars to come, {spent_usd:.2f} spent so far; {ceiling}. Reply tokens are an "
        "estimate; repair turns and hidden reasoning are not in it.",
        highlight=False,
    )


def _held_out_quotes(config: RunConfig, planned_run: Plan) -> tuple[list[Quote], float]:
    """Print what labels of held-out thinkings will ask; returns that, and what they have cost."""
    from mralign_core.evaluation.held_out_traces import most_held_out_traces, variants_to_label
    from tasks.annotate import quote_annotations, quote_held_out

    made, setting = planned_run.made, config.evaluate.label_thinking
    asked = f"annotation of held-out answers (evaluate.label_thinking: {setting})"
    if not variants_to_label(config) or "evaluation-questions" not in made:
        return [], 0.0
    if "held-out-traces" in made:
        quotes, spent_usd = quote_annotations(config, made["held-out-traces"])
        _print_requests(asked, quotes)
        return quotes, spent_usd
    number = most_held_out_traces(config, made["evaluation-questions"].rows or 0)
    quotes = quote_held_out(config, made["candidates"], number)
    _print_requests(f"{asked}, of {number:,} at most, each taken for a candidate", quotes)
    return quotes, 0.0


def _print_judges_quote(config: RunConfig, planned_run: Plan) -> None:
    from mralign_core.evaluation.variants import variants_to_judge
    from mralign_core.judging.quoting import ANSWER_TOKENS, CLAIMS_A_SENTENCE, LONG_ANSWER_SENTENCES
    from tasks.judge import quote_judgements

    made, variants = planned_run.made, variants_to_judge(config)
    if "evaluation-questions" not in made:
        console.print("judges: told once the questions are loaded (--only prepare)", highlight=False)
        return
    scores = [made[f"scores:{variant}"] for variant in variants if f"scores:{variant}" in made]
    quotes, spent_usd = quote_judgements(config, made["evaluation-questions"], scores)
    _print_requests("judges, still to ask", quotes)
    to_come = len(variants) - len(scores)
    taken = (
        f" Answers of {to_come} variant(s) are to come, and taken for {ANSWER_TOKENS} tokens each." if to_come else ""
    )
    if config.judge.evidence.is_named:
        long_ones = f" those of claims for {LONG_ANSWER_SENTENCES} sentences, and" if to_come else ""
        taken += (
            f" Of long answers{long_ones} each sentence still to ask is taken for {CLAIMS_A_SENTENCE} claims to check."
        )
    cost_usd, budget = sum(quote.cost_usd for quote in quotes), config.judge.budget_usd
    ceiling = "no ceiling is set (judge.budget_usd)" if budget is None else f"judge.budget_usd is {budget:.2f}"
    console.print(
        f"{cost_usd:.2f} dollars to come, {spent_usd:.2f} spent so far; {ceiling}.{taken} Reply tokens are an "
        "estimate; repair turns and hidden reasoning are not in it.",
        highlight=False,
    )


def _print_requests(title: str, quotes: Sequence[Quote]) -> None:
    table = Table("model", "kept", "requests", "prompt tokens", "reply tokens", "dollars", title=title)
    for quote in quotes:
        requests, cost = f"{quote.requests:,}", f"{quote.cost_usd:.2f}"
        if quote.most_requests > quote.requests:
            requests, cost = f"{requests} to {quote.most_requests:,}", f"{cost} to {quote.most_cost_usd:.2f}"
        if quote.again:
            requests += f" ({quote.again:,} again)"
        tokens = (f"{quote.prompt_tokens:,}", f"{quote.completion_tokens:,}")
        table.add_row(quote.model, f"{quote.kept:,}", requests, *tokens, cost)
    console.print(table)


def print_results(config: RunConfig, server: ServerAddress, *, run: str, finished_pipeline: bool) -> None:
    """The results of a finished run, and where everything is."""
    from tasks.engine.last_run import LastRun

    if not finished_pipeline:
        console.print("done")
        return
    from mralign_core.reporting.diagnostic_findings import discrimination_sentences
    from mralign_core.storage import ArtifactStore
    from mralign_core.versions.aliases import version_name
    from tasks.estimate import read_diagnostics
    from tasks.filed_report import filed_report

    store, made = ArtifactStore(config.storage), LastRun(config, run)
    _print_summary(store.open_directory(made("results")), config)
    for line in discrimination_sentences(read_diagnostics(store, made("diagnostics"))):
        console.print(escape(line), highlight=False, soft_wrap=True)
    rows: dict[str, object] = {"report": filed_report(config, made("report")), "artifacts": store.root_uri}
    for variant in config.train.variants:
        rows[f"adapter {variant}"] = store.open_directory(made(f"adapter:{variant}"))
        if config.questions.eval:
            rows[f"version {variant}"] = version_name(f"{variant}-{made(f'version:{variant}').key}")
    _print_places({**rows, "this run in the UI": server.ui_hint})


def print_generation(config: RunConfig, run: str) -> None:
    """What became of the draws, and what each step of the selection kept."""
    from mralign_core.generation.outcomes import PARTLY_DRAWN, describe_draws
    from mralign_core.reporting.run_findings import yield_table
    from mralign_core.storage import ArtifactStore
    from tasks.engine.last_run import LastRun
    from tasks.generate import read_draws

    store, made = ArtifactStore(config.storage), LastRun(config, run)
    if config.generate.source == "sample":
        console.print(describe_draws(read_draws(store, made("generations"))), highlight=False)
        if config.generate.draws == "sequential":
            console.print(PARTLY_DRAWN, style="dim", highlight=False)
    funnel = store.read_json(made("candidates"), "funnel.json")
    console.print(in_type(yield_table(funnel), title=f"config {config.name!r}: yield of the selection"))
    if config.estimate.uses_draws:
        funnel = store.read_json(made("thinking-draws"), "funnel.json")
        title = f"config {config.name!r}: yield of the draws to estimate from ({config.estimate.traces})"
        console.print(in_type(yield_table(funnel), title=title))


def print_left_out(config: RunConfig, run: str) -> None:
    """Traces that a run's annotators failed on, by kind; nothing where there are none."""
    from mralign_core.annotation.failures import FAILURES_FILE, left_out_lines, read_failures
    from mralign_core.reporting.inputs import joined_failures
    from mralign_core.storage import ArtifactStore
    from tasks.engine.last_run import LastRun

    store, made = ArtifactStore(config.storage), LastRun(config, run)
    names = ("annotations", "draw-annotations") if config.estimate.uses_draws else ("annotations",)
    failures = joined_failures(*(read_failures(store.open_file(made(name), FAILURES_FILE)) for name in names))
    for line in left_out_lines(failures):
        console.print(f"[yellow]left out[/yellow] {escape(line)}", highlight=False, soft_wrap=True)


def print_agreement(config: RunConfig, agreement: ArtifactRef, server: ServerAddress) -> None:
    """How far the annotation sets agree."""
    from mralign_core.reporting.agreement_tables import agreement_notes, agreement_summary
    from mralign_core.storage import ArtifactStore
    from tasks.compare_annotators import read_agreement

    found = read_agreement(config, agreement)
    console.print(in_type(agreement_summary(found)))
    for name, note in agreement_notes(found).items():
        console.print(f"[bold]{escape(name)}[/bold]: {escape(note)}", soft_wrap=True, highlight=False)
    folder = ArtifactStore(config.storage).open_directory(agreement)
    _print_places({"agreement": folder / "agreement.md", "this run in the UI": server.ui_hint})


def print_ablation(config: RunConfig, ref: ArtifactRef, server: ServerAddress) -> None:
    """Levels and paired differences of the arms, the sentence that says what they show, and where the rest is."""
    from mralign_core.reporting.ablation_findings import ablation_tables, left_out_note, refused_worlds, sentence
    from mralign_core.storage import ArtifactStore
    from tasks.ablate import FOREST_PNG, PAGE, read_ablation, write_ablation

    found = read_ablation(config, ref)
    for table in ablation_tables(found):
        console.print(in_type(table))
    for line in refused_worlds(found) + left_out_note(found):
        console.print(escape(line), style="yellow", highlight=False, soft_wrap=True)
    console.print(escape(sentence(found)), highlight=False, soft_wrap=True)
    folder = ArtifactStore(config.storage).open_directory(write_ablation.work(config, ref).produce().ref)
    _print_places({"page": folder / PAGE, "figure": folder / FOREST_PNG, "this run in the UI": server.ui_hint})


def print_label_set(config: RunConfig, ref: ArtifactRef, output: Path | None, server: ServerAddress) -> None:
    """The induced labels, and how to use them."""
    from mralign_core.reporting.induction_findings import counts_sentence, label_table
    from mralign_core.storage import ArtifactStore
    from tasks.induce_taxonomy import LABEL_SET, MAP_PNG, OPEN_LABELS, read_clusters

    found = read_clusters(config, ref)
    title = f"config {config.name!r}: {found['counts']['labels']} labels induced"
    console.print(in_type(label_table(found), title=title, show_lines=True))
    console.print(escape(counts_sentence(found)), highlight=False)
    for where, problem in found["failures"].items():
        console.print(f"[yellow]failed[/yellow] {escape(where)}: {escape(problem)}", highlight=False)
    folder = ArtifactStore(config.storage).open_directory(ref)
    file = folder / LABEL_SET
    if output:
        output.write_bytes(file.read_bytes())
        file = output.resolve()
    rows = {"label set": file, "open labels": folder / OPEN_LABELS, "cluster map": folder / MAP_PNG}
    _print_places({**rows, "this run in the UI": server.ui_hint})
    console.print(f"use it: mralign run --config {config.name} --set annotate.label_set={file}", soft_wrap=True)


def in_type(table: ResultTable, *, title: str | None = None, show_lines: bool = False) -> Table:
    """A table of results for the terminal, where 80 columns must do; its texts are no markup."""
    from mralign_core.reporting.result_table import ResultCell

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title, show_lines=show_lines)
    if table.title:
        shown.title = escape(table.title)
        shown.title_justify = "left"
    for place, name in enumerate(table.columns):
        is_text = table.is_text(place)
        shown.add_column(
            escape(name), justify="left" if is_text else "right", overflow="fold" if is_text else "ellipsis"
        )
    for row in table.rows:
        cells = (Text(c.brief or c.text, STYLES[c.tone]) if isinstance(c, ResultCell) else escape(c) for c in row)
        shown.add_row(*cells)
    return shown


def _print_summary(folder: Path, config: RunConfig) -> None:
    from mralign_core.reporting.decision_findings import decision_sentences, read_decisions
    from mralign_core.reporting.judged_findings import judged_notes, judged_tables, read_judged
    from mralign_core.reporting.run_findings import read_results, result_tables, why_no_results
    from mralign_core.reporting.token_table import read_mean_tokens, token_table

    results, judged = read_results(folder), read_judged(folder)
    if results is None:
        console.print(why_no_results(config.questions, has_judge=bool(config.judge.endpoints)))
    for table in [*(result_tables(*results) if results else ()), *(judged_tables(judged) if judged else ())]:
        console.print(in_type(table))
    if (tokens := read_mean_tokens(folder)) is not None:
        console.print(in_type(token_table(tokens)))
    for note in judged_notes(judged) if judged else ():
        console.print(escape(note), highlight=False, soft_wrap=True)
    if decided := read_decisions(folder):
        for line in decision_sentences(decided.decisions):
            console.print(escape(line), highlight=False, soft_wrap=True)


def _print_places(places: Mapping[str, object]) -> None:
    """Names with paths, which are for copying: never cut or wrapped, however narrow the terminal."""
    for name, where in places.items():
        console.print(f"[bold]{name:<20}[/bold]{where}", soft_wrap=True, highlight=False)

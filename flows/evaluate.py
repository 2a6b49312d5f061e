"""Stage 6: measure every variant on held-out questions, and write the report."""

from __future__ import annotations

from prefect import flow

from mralign_core.config import RunConfig
from mralign_core.storage import ArtifactRef
from tasks.evaluate import score_variant, variants_to_score, write_report
from tasks.publishing import show_results
from tasks.runs import last_adapters, last_run, remember

INPUTS = ("questions", "model", "candidates", "annotations", "transitions", "diagnostics", "rewards")


@flow(name="evaluate")
def evaluate(
    config: RunConfig,
    artifacts: dict[str, ArtifactRef] | None = None,
    adapters: dict[str, ArtifactRef] | None = None,
) -> ArtifactRef:
    """Score think-off, think-on and every adapter on common random numbers.

    Args:
        config: the run config.
        artifacts: questions, model, candidates, annotations, transitions, diagnostics (may be left out) and rewards,
            by name; the last run's when empty.
        adapters: variant → adapter; the last run's when empty.
    """
    artifacts = artifacts or {name: last_run(config, name) for name in INPUTS}
    adapters = adapters or last_adapters(config)
    questions, model = artifacts["questions"], artifacts["model"]
    scores = {
        variant: score_variant(config, variant, questions, model, adapters.get(variant))
        for variant in variants_to_score(config, questions)
    }
    report = write_report(config, artifacts, adapters, scores)
    remember(config, report=report)
    show_results(config, report)
    return report

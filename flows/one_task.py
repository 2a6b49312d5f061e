"""One task of a stage in this process, with no server: what ``mralign task`` calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from mralign_core.config import RunConfig, Variant
from mralign_core.errors import ConfigError
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.annotate import annotate_shard, annotation_shards
from tasks.engine.last_run import LastRun
from tasks.estimate import estimate_matrices
from tasks.evaluate import evaluation_shards, score_shard
from tasks.generate import sample_shard, select_candidates, training_shards
from tasks.prepare import prepare_model
from tasks.reward import weigh_traces
from tasks.train import needs_reference, reference_logps, train_variant

S = TypeVar("S")


class Inputs:
    """The artifacts a task reads: the one named on the command line, else the last run's."""

    def __init__(self, config: RunConfig, named: Mapping[str, str]) -> None:
        self._config = config
        self._named = named
        self._last_run = LastRun(config)

    def __call__(self, name: str) -> ArtifactRef:
        """The artifact of this name.

        Raises:
            ArtifactError: there is none, or more than one fits.
        """
        if name in self._named:
            return ArtifactStore(self._config.storage).resolve(self._named[name])
        return self._last_run(name)


def run_one(config: RunConfig, stage: str, *, shard: int, variant: str, named: Mapping[str, str]) -> ArtifactRef:
    """Run the main task of a stage.

    Args:
        config: the run config.
        stage: which stage.
        shard: which shard, for generate, annotate and evaluate.
        variant: which variant, for train and evaluate.
        named: artifact name → URI, ``stage/key`` or key prefix, in place of the last run's.

    Raises:
        ConfigError: there is no such shard or variant.
    """
    of = Inputs(config, named)
    if stage == "prepare":
        return prepare_model.run_here(config)
    if stage == "generate":
        return _generate(config, of, shard)
    if stage == "annotate":
        candidates = of("candidates")
        return annotate_shard.run_here(config, candidates, *_pick(annotation_shards(config, candidates), shard))
    if stage == "estimate":
        return estimate_matrices.run_here(config, of("candidates"), of("annotations"))
    if stage == "reward":
        return weigh_traces.run_here(config, of("candidates"), of("annotations"), of("transitions"))
    if stage == "train":
        traces = {name: of(name) for name in ("model", "candidates", "annotations")}
        trained = _trained(config, variant)
        reference = reference_logps.run_here(config, **traces) if needs_reference([trained]) else None
        return train_variant.run_here(config, trained, **traces, reference=reference, rewards=of("rewards"))
    adapter = None if variant in ("off", "on") else of(f"adapter:{_trained(config, variant)}")
    questions = of("questions")
    bounds = _pick(evaluation_shards(config, questions), shard)
    return score_shard.run_here(config, variant, questions, of("model"), adapter, *bounds)


def _generate(config: RunConfig, of: Inputs, shard: int) -> ArtifactRef:
    questions, model = of("questions"), of("model")
    if config.generate.source == "traces":
        return select_candidates.run_here(config, questions, model, None)
    return sample_shard.run_here(config, questions, model, *_pick(training_shards(config, questions), shard))


def _pick(shards: Sequence[S], shard: int) -> S:
    if shard >= len(shards):
        raise ConfigError(f"--shard {shard}: there are {len(shards)} shards, numbered from 0")
    return shards[shard]


def _trained(config: RunConfig, variant: str) -> Variant:
    if variant not in config.train.variants:
        raise ConfigError(f"--variant {variant}: train.variants are {', '.join(config.train.variants)}")
    return cast(Variant, variant)

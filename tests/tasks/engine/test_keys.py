"""Cache keys: a field changes exactly the artifacts that depend on it, and nothing operational changes any."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.commands.cli import read_config
from mralign_core.config import (
    EndpointConfig,
    EvidenceConfig,
    JudgeConfig,
    RewardConfig,
    RunConfig,
    Section,
    VllmConfig,
)
from mralign_core.config.annotate import ESCALATION
from mralign_core.exporting.paths import EXPORT_FILE
from mralign_core.storage import ArtifactRef
from mralign_core.storage.digests import module_closure
from tasks.ablate import compare_arms
from tasks.annotate import collect_annotations
from tasks.engine.graph import Items, artifact_of, graph
from tasks.engine.run import Work
from tasks.estimate import estimate_transitions
from tasks.evaluate import collect_scores, compute_results
from tasks.generate import select_candidates
from tasks.induce_taxonomy import induce_labels
from tasks.prepare import load_questions, prepare_model
from tasks.reward import weigh_segments
from tasks.snippets import find_snippets
from tasks.train import train_adapter

ASKED = {"questions", "evaluation-questions"}
DRAWS = {"generations-shard", "generations"}
SELECTED = {"candidates", "thinking-draws"}
LABELS = {"annotations-shard", "annotations", "draw-annotations", "held-out-annotations"}
SCORES = {"scores-shard", "scores"}
JUDGED = {"judgements-shard", "judgements"}
USED_BY = {
    name: {user.name for user in graph().values() if name in [each.name for each in user.inputs]} for name in graph()
}
"""Which kinds of artifact are computed from which."""

ENDPOINTS = {f"annotate.{role}": LABELS for role in ("annotator_a", "annotator_b", "adjudicator")} | {
    f"induce.{role}": {"label-set"} for role in ("labeller", "namer")
}
"""Sections that name a model and how to reach it → the artifacts made by it."""

MODEL = {
    "model": "openai/another",
    "api_base": "http://127.0.0.1:9",
    "temperature": 0.0,
    "max_output_tokens": 100,
    "response_format": "json_object",
}
"""Field of such a section that replies depend on → another value."""

LIMITS = {
    "requests_per_minute": 5,
    "tokens_per_minute": 5000,
    "timeout_s": 5.0,
    "max_attempts": 1,
    "max_retry_after_s": 1.0,
    "stop_after_failures": 7,
    "input_usd_per_million": 1.0,
    "output_usd_per_million": 1.0,
    "use_batch_api": True,
    "batch_window_s": 1.0,
    "batch_max_requests": 10,
    "batch_poll_s": 1.0,
}
"""Field of such a section that says how to reach the model → another value."""

COMPANIONS: dict[str, dict[str, Any]] = {
    "input_usd_per_million": {"output_usd_per_million": 2.0, "input_usd_per_million": 2.0},
    "output_usd_per_million": {"output_usd_per_million": 2.0, "input_usd_per_million": 2.0},
    "ask_timeout_h": {"mode": "ask"},
    **{name: {"kind": "mlflow", "uri": "http://127.0.0.1:8"} for name in ("kind", "uri", "model_name", "aliases")},
    **{name: {"use_batch_api": True} for name in ("batch_window_s", "batch_max_requests", "batch_poll_s")},
}
"""Field that means nothing alone → what must be given with it."""

DEPENDS_ON = {
    "seed": (
        7,
        DRAWS
        | LABELS
        | SCORES
        | {"transitions", "diagnostics", "adapter", "results", "agreement", "label-set", "promotion"},
    ),
    "model.dtype": ("bfloat16", DRAWS | SCORES | {"reference-logps", "adapter"}),
    "model.cpu_threads": (2, {"reference-logps", "adapter"}),
    "model.family": ("generic", DRAWS | SCORES | SELECTED),
    "model.pocket.world_seed": (1, ASKED | {"model"}),
    "model.pocket.overwrite_prob": (0.5, ASKED | {"model"}),
    "model.pocket.popular_share": (0.5, {"model"}),
    "model.pocket.misconception_share": (0.3, {"model"}),
    "model.pocket.architecture": ("llama", {"model"}),
    "model.pocket.num_layers": (3, {"model"}),
    "model.pocket.pretrain_steps": (601, {"model"}),
    "model.pocket.min_one_hop_accuracy": (0.5, {"model"}),
    "model.pocket.min_em_thought": (0.5, {"model"}),
    "questions.train": ({"name": "pocket", "limit": 100}, {"questions"}),
    "questions.train_on": (["pocket"], {"questions"}),
    "questions.eval": ({"name": "pocket", "limit": 100}, ASKED),
    "questions.on_overlap": ("drop", {"questions"}),
    "questions.on_guessable": ("drop", ASKED),
    "match.containment": ("substring", DRAWS | SCORES),
    "match.variants": (False, DRAWS | SCORES),
    "generate.num_draws": (2, DRAWS | {"candidates"}),
    "generate.draws": ("exhaustive", DRAWS),
    "generate.temperature": (0.3, DRAWS),
    "generate.top_p": (0.8, DRAWS),
    "generate.max_new_tokens": (191, DRAWS),
    "generate.instruction": ("Think.", DRAWS | SCORES),
    "generate.answer_match": ("contains", DRAWS | SELECTED),
    "generate.cut_off": ("left_out", DRAWS | SELECTED),
    "generate.min_segments": (2, SELECTED),
    "generate.max_segments": (14, SELECTED),
    "generate.min_reasoning_tokens": (11, SELECTED),
    "generate.max_reasoning_tokens": (179, SELECTED),
    "generate.traces_per_question": ("first", {"candidates"}),
    "annotate.confidence_threshold": (8.0, LABELS),
    "annotate.cue_drop_prob": (0.2, LABELS),
    "annotate.cue_flip_prob": (0.2, LABELS),
    "estimate.traces": ("matched", {"thinking-draws", "transitions", "diagnostics"}),
    "estimate.estimator": ("frequency", {"transitions", "agreement"}),
    "estimate.labels_per_segment": ("one", {"transitions", "weights", "agreement"}),
    "estimate.num_iterations": (6, {"transitions", "agreement"}),
    "estimate.damping": (0.5, {"transitions", "agreement"}),
    "estimate.prior": (0.2, {"transitions", "agreement"}),
    "estimate.tolerance": (1e-5, {"transitions", "agreement"}),
    "estimate.num_resamples": (100, {"transitions"}),
    "estimate.confidence": (0.9, {"diagnostics", "diagnostic-figures", "weights"}),
    "estimate.permute_polarity": (True, {"transitions"}),
    "reward.reference": ("opposite", {"diagnostics", "diagnostic-figures", "weights", "agreement"}),
    "reward.clip_min": (0.5, {"diagnostics", "diagnostic-figures", "weights", "agreement"}),
    "reward.clip_max": (2.0, {"diagnostics", "diagnostic-figures", "weights", "agreement"}),
    "reward.support_shrinkage": (2.0, {"diagnostics", "diagnostic-figures", "weights", "agreement"}),
    "reward.condition_on": ("stratum", {"diagnostics", "diagnostic-figures", "weights", "agreement"}),
    "reward.form": ("signed", {"weights"}),
    "reward.gamma": (2.0, {"weights"}),
    "reward.leave_own_question_out": (True, {"weights"}),
    "reward.placebo": ("within_trace", {"weights"}),
    "reward.normalize": ("mean_one", {"weights"}),
    "train.variants": (["mr_align", "kto", "sft"], set()),
    "train.beta": (0.2, {"adapter"}),
    "train.desirable_weight": (1.1, {"adapter"}),
    "train.undesirable_weight": (1.4, {"adapter"}),
    "train.lora_r": (16, {"adapter"}),
    "train.lora_alpha": (32, {"adapter"}),
    "train.lora_dropout": (0.1, {"adapter"}),
    "train.target_modules": ("q_proj", {"adapter"}),
    "train.learning_rate": (2e-4, {"adapter"}),
    "train.sft_learning_rate": (2e-4, set()),
    "train.num_epochs": (2, {"adapter"}),
    "train.warmup_ratio": (0.2, {"adapter"}),
    "train.global_batch_size": (8, {"adapter"}),
    "train.positives_only": (True, {"adapter"}),
    "train.kl_every": (4, {"adapter"}),
    "train.kl_decay": (0.5, {"adapter"}),
    "train.load_in_4bit": (True, {"reference-logps", "adapter"}),
    "train.engine": ("trl", {"adapter"}),
    "train.rows_per_forward": (4, {"adapter"}),
    "train.max_grad_norm": (0.5, {"adapter"}),
    "train.max_length": (255, {"reference-logps", "adapter"}),
    "evaluate.sampler": ("vllm", SCORES),
    "evaluate.num_draws": (4, SCORES),
    "evaluate.temperature": (0.7, SCORES),
    "evaluate.top_p": (0.9, SCORES),
    "evaluate.top_k": (10, SCORES),
    "evaluate.max_new_tokens": (191, SCORES),
    "evaluate.self_refine.rounds": (1, set()),
    "evaluate.num_resamples": (500, {"results"}),
    "evaluate.confidence": (0.9, {"results"}),
    "evaluate.margin": (0.05, {"results"}),
    "compare.panels": ([{"name": "other"}], {"agreement"}),
    "compare.num_resamples": (500, {"agreement"}),
    "compare.confidence": (0.9, {"agreement"}),
    "induce.num_traces": (100, {"label-set"}),
    "induce.min_frequency": (4, {"label-set"}),
    "induce.embedder": ("BAAI/bge-m3", {"label-set"}),
    "induce.min_samples": (3, {"label-set"}),
    "induce.xi": (0.1, {"label-set"}),
    "distil.encoder": ("BAAI/bge-m3", {"distillation"}),
    "retrain.gate.min_gain": (0.03, {"promotion"}),
    "retrain.gate.max_loss": (0.03, {"promotion"}),
    "retrain.gate.max_part_loss": (0.03, {"promotion"}),
    "retrain.gate.confidence": (0.9, {"promotion"}),
    "retrain.gate.comparisons": (3, {"promotion"}),
    "retrain.gate.max_unlabelled": (0.3, {"promotion"}),
    "retrain.gate.min_agreement": (0.3, {"promotion"}),
    "retrain.train_on": ("replay", {"training-traces"}),
    "retrain.replay_share": (0.5, {"training-traces"}),
    "retrain.beyond": (f"mr_align-{'1' * 64}", {"training-traces"}),
    "ablate.arms": (["kto"], {"ablation", "ablation-page"}),
    "ablate.confidence": (0.9, {"ablation", "ablation-page"}),
    "ablate.smallest_effect": (0.01, {"ablation", "ablation-page"}),
} | {f"{role}.{name}": (value, direct) for role, direct in ENDPOINTS.items() for name, value in MODEL.items()}
"""Field → another value, and the artifacts it changes directly. The report and a version show the config: any field
changes them, but for those of ``ANALYSES``, which are no part of the pipeline."""

MEANINGLESS_ALONE: dict[str, dict[str, Any]] = {
    "reward.gamma": {"reward.form": "power"},
    "estimate.traces": {"generate.draws": "exhaustive"},
    "train.rows_per_forward": {"train.engine": "trl"},
    **{
        f"retrain.{name}": {"retrain.train_on": train_on, "retrain.beyond": f"mr_align-{'0' * 64}"}
        for name, train_on in (("train_on", "new"), ("replay_share", "replay"), ("beyond", "new"))
    },
}
"""Field of ``DEPENDS_ON`` → what must be given with it."""

ANALYSES = ("compare.", "induce.", "distil.", "ablate.", "retrain.")

NOT_OF_THE_POCKET = {f"annotate.{name}" for name in ("show_gold_answers", "may_merge", *ESCALATION)}
NOT_OF_THE_POCKET |= {"model.source", "model.path", "model.revision", "generate.source", "annotate.source"}
NOT_OF_THE_POCKET |= {
    f"{section}.{name}"
    for section in ("induce.embedding", "generate.endpoint", "evaluate.endpoint")
    for name in EndpointConfig.model_fields
}
NOT_OF_THE_POCKET |= {"generate.sampler", "generate.concurrency", "generate.budget_usd", "generate.ask_again"}
NOT_OF_THE_POCKET |= {f"judge.{name}" for name in JudgeConfig.model_fields if name != "evidence"}
NOT_OF_THE_POCKET |= {f"judge.evidence.{name}" for name in EvidenceConfig.model_fields}
NOT_OF_THE_POCKET |= {f"evaluate.{name}" for name in ("concurrency", "budget_usd", "adapters", "adapters_dir")}
NOT_OF_THE_POCKET |= {"evaluate.ignored_adapters"}
NOT_OF_THE_POCKET |= {"evaluate.retrieval.top_k"}
NOT_OF_THE_POCKET |= {f"vllm.{name}" for name in VllmConfig.model_fields}
"""Fields that only other configs use; see the tests below."""

OPERATIONAL = {
    "name": "other",
    "storage.root": "elsewhere",
    "storage.endpoint_url": "http://127.0.0.1:9",
    "storage.connect_timeout_s": 1.0,
    "storage.read_timeout_s": 1.0,
    "storage.claim_lease_s": 30.0,
    "storage.patience_s": 2.0,
    "storage.cache_gib": 1.0,
    "storage.retention.runs": 1,
    "storage.retention.days": 1.0,
    "storage.retention.grace_hours": 1.0,
    "storage.retention.unnamed_versions": 1,
    "model.device": "auto",
    "generate.batch_size": 8,
    "generate.shard_size": 10,
    "generate.where": "threads",
    "generate.num_workers": 2,
    "annotate.concurrency": 1,
    "annotate.shard_size": 3,
    "annotate.ask_again": "failed",
    "annotate.budget_usd": 1.0,
    "train.trace_logps": True,
    "train.tokens_per_forward": 1,
    "train.gradient_checkpointing": "always",
    "train.on_out_of_memory": "stop",
    "train.checkpoint_minutes": 1.0,
    "train.accelerate_config": "accelerate.yaml",
    "train.report_to": "none",
    "train.log_folder": "elsewhere",
    "train.where": "deployment",
    "evaluate.batch_size": 8,
    "evaluate.shard_size": 10,
    "evaluate.where": "threads",
    "evaluate.num_workers": 2,
    "induce.concurrency": 1,
    "induce.ask_again": "never",
    "induce.embedding_batch_size": 8,
    "induce.budget_usd": 1.0,
    "distil.name": "other",
    "ablate.where": "deployment",
    "retrain.variant": "kto",
    "retrain.alias": "mine",
    "retrain.mode": "ask",
    "retrain.ask_timeout_h": 1.0,
    "retrain.budget_usd_a_month": 1.0,
    "retrain.clears_store": True,
    "retrain.quiet_runs": 2,
    "retrain.registry.kind": "mlflow",
    "retrain.registry.uri": "http://127.0.0.1:9",
    "retrain.registry.model_name": "other",
    "retrain.registry.aliases": ("champion",),
} | {f"{role}.{name}": value for role in ENDPOINTS for name, value in LIMITS.items()}
"""Field → another value; these decide where and how fast, never what."""

GRID = {
    "ablate.num_worlds": 2,
    "ablate.first_world": 3,
    "ablate.max_refused_worlds": 0,
    "ablate.num_seeds": 2,
    "ablate.extra_arms": {"mine": {}},
}
"""Field → another value; these say which worlds, seeds and arms there are, and change nothing that is made of one."""

READ_BY_THE_REPORT = {"evaluate.label_thinking": "none"}
"""Field → another value; it says what the report reads and changes nothing else."""

PATHS = {"generate.traces_path", "compare.sheets", "annotate.label_set", "evaluate.retrieval.corpus"}
PATHS |= {"evaluate.people_sheet", "distil.labels"}
"""Operational too: the contents of the files count, not where they are."""


PART = {"variant": "mr_align", "refused": {}, "champion_id": ""}


def keys(config: RunConfig) -> dict[str, str]:
    """The key of every artifact of a run, where each artifact's content is as unique as its key."""
    found: dict[str, ArtifactRef] = {}
    for artifact in graph().values():
        part = {name: PART[name] for name in artifact.part}
        inputs = {
            (f"{each.name}:mr_align" if each.each else each.role(each.name)): found[each.name]
            for each in artifact.inputs
            if each.name in found and (each.each or each.when(config, part))
        }
        key = artifact.key(config, inputs, {**part, "items": ["x"]} if artifact.is_shard else part)
        found[artifact.name] = ArtifactRef(uri=artifact.name, stage=artifact.name, key=key, sha256=key)
    return {name: ref.key for name, ref in found.items()}


def downstream(names: set[str]) -> set[str]:
    """The artifacts and all that is computed from them; of a shard, its items count and not where they came from."""
    reached = set(names)
    while new := {user for name in reached for user in USED_BY[name] if is_keyed(name, user)} - reached:
        reached |= new
    return reached


def is_keyed(name: str, user: str) -> bool:
    return next(each.is_keyed for each in artifact_of(user).inputs if each.name == name)


def last(field: str) -> str:
    return field.rpartition(".")[2]


def changed(one: RunConfig, other: RunConfig) -> set[str]:
    before, after = keys(one), keys(other)
    return {name for name in before if before[name] != after[name]}


def leaves(section: Section, prefix: str = "") -> set[str]:
    names = set()
    for name in type(section).model_fields:
        value = getattr(section, name)
        names |= leaves(value, f"{prefix}{name}.") if isinstance(value, Section) else {prefix + name}
    return names


POCKET = read_config("pocket")
ANY = ArtifactRef(uri="x", stage="x", key="x", sha256="0" * 64)
OTHER = ArtifactRef(uri="y", stage="x", key="x", sha256="1" * 64)


def adapter_work(config, variant, reference=ANY, weights=ANY):
    return train_adapter.work(config, ANY, ANY, ANY, reference, weights, variant=variant)


def ablation_work(config, scores, refused):
    return compare_arms.work(config, scores, refused=refused)


def test_every_field_is_in_one_table():
    tables = [set(DEPENDS_ON), set(OPERATIONAL), PATHS, NOT_OF_THE_POCKET, set(GRID), set(READ_BY_THE_REPORT)]
    assert set().union(*tables) == leaves(POCKET)
    assert sum(map(len, tables)) == len(leaves(POCKET))


@pytest.mark.parametrize("field", DEPENDS_ON)
def test_a_field_changes_what_is_downstream_of_it_and_no_more(field):
    value, direct = DEPENDS_ON[field]
    shown = set() if field.startswith(ANALYSES) else {"report", "version", "promotion"}
    given = MEANINGLESS_ALONE.get(field, {})
    base = read_config("pocket", given)
    assert changed(base, read_config("pocket", {**given, field: value})) == downstream(direct) | shown


def test_labels_of_an_export_have_keys_of_their_own_and_other_labels_keep_theirs(tmp_path):
    (tmp_path / EXPORT_FILE).write_text("{}")
    taken = {"generate.source": "traces", "generate.traces_path": str(tmp_path / EXPORT_FILE)}
    base = read_config("pocket", taken)
    found = changed(base, read_config("pocket", {**taken, "annotate.source": "traces"}))
    assert found == downstream(LABELS) | {"report", "version", "promotion"}


@pytest.mark.parametrize("field", GRID)
def test_the_grid_of_an_ablation_changes_no_key(field):
    assert not changed(POCKET, read_config("pocket", {field: GRID[field]}))


@pytest.mark.parametrize("field", READ_BY_THE_REPORT)
def test_what_the_report_reads_changes_its_key_alone(field):
    assert changed(POCKET, read_config("pocket", {field: READ_BY_THE_REPORT[field]})) == {"report"}


def test_a_registry_changes_no_key():
    assert not changed(
        POCKET, read_config("pocket", {f"retrain.registry.{name}": COMPANIONS["uri"][name] for name in ("kind", "uri")})
    )


@pytest.mark.parametrize("field", OPERATIONAL)
def test_an_operational_field_changes_no_key(field):
    with_it = {f"{field.rpartition('.')[0]}.{name}": value for name, value in COMPANIONS.get(last(field), {}).items()}
    assert not changed(read_config("pocket", with_it), read_config("pocket", with_it | {field: OPERATIONAL[field]}))


@pytest.mark.parametrize("name", [*MODEL, *(name for name in LIMITS if "batch" not in name)])
def test_of_the_embeddings_endpoint_the_model_counts_and_its_limits_do_not(name):
    section = {"model": "openai/embedder", "input_usd_per_million": 0, "output_usd_per_million": 0}
    base, other = (
        read_config("pocket", {"induce.embedder": "endpoint", "induce.embedding": embedding})
        for embedding in (section, section | {name: (MODEL | LIMITS)[name]})
    )
    assert changed(base, other) == ({"label-set"} if name in MODEL else set())


SERVED = {"generate.sampler": "endpoint", "generate.endpoint.model": "openai/m"}


@pytest.mark.parametrize(
    ("field", "value", "direct"),
    [
        ("generate.endpoint.model", "openai/another", DRAWS),
        ("generate.endpoint.api_base", "http://127.0.0.1:9", DRAWS),
        ("generate.endpoint.timeout_s", 5.0, set()),
        ("generate.endpoint.requests_per_minute", 5, set()),
        ("generate.concurrency", 3, set()),
        ("generate.budget_usd", 1.0, set()),
        ("generate.ask_again", "never", set()),
        ("model.dtype", "bfloat16", SCORES | {"reference-logps", "adapter"}),
    ],
)
def test_of_a_server_that_samples_the_model_counts_and_its_limits_do_not(field, value, direct):
    found = changed(read_config("pocket", SERVED), read_config("pocket", SERVED | {field: value}))
    told = {"report", "version", "promotion"}  # name the whole config
    assert found - told == downstream(direct) - told


@pytest.mark.parametrize(
    ("fields", "direct"),
    [
        ({"endpoints": [{**MODEL, "model": "openai/judge"}]}, JUDGED | {"results"}),
        *(({"endpoints": [{"model": "openai/m", name: MODEL[name]}]}, JUDGED) for name in MODEL if name != "model"),
        ({"endpoints": ["openai/m", "similarity/ngrams"]}, JUDGED | {"results"}),
        ({"graded": ["pocket"]}, {"judgements"}),
        ({"evidence": {"search": "http://127.0.0.1:9"}}, JUDGED),
        ({"evidence": {"corpus": "pocket"}}, JUDGED),
        ({"budget_usd": 1.0}, set()),
        ({"concurrency": 1}, set()),
        ({"shard_size": 3}, set()),
        ({"ask_again": "failed"}, set()),
        ({"endpoints": [{"model": "openai/m", "timeout_s": 5.0, "use_batch_api": True}]}, set()),
    ],
)
def test_of_a_judge_what_it_says_counts_and_its_limits_do_not(fields, direct):
    """Which sets are graded, a shard's items say."""
    base = {f"judge.{name}": value for name, value in {"endpoints": ["openai/m"]}.items()}
    found = changed(
        read_config("pocket", base), read_config("pocket", base | {f"judge.{n}": v for n, v in fields.items()})
    )
    told = {"report", "version", "promotion"}  # name the whole config
    assert found - told == downstream(direct) - told


def test_without_a_judge_nothing_is_made_of_answers_beside_scores():
    work = compute_results.work(POCKET, scores={"on": ANY}, evaluation_questions=ANY)
    assert list(work.inputs) == ["scores:on", "evaluation-questions"] and not artifact_of("judgements").parts(POCKET)


SCORED_BY = {"evaluate.sampler": "endpoint", "evaluate.endpoint": {"model": "hosted_vllm/m", "api_base": "http://h/v1"}}


@pytest.mark.parametrize(
    ("field", "value", "direct"),
    [
        ("evaluate.endpoint.model", "hosted_vllm/another", SCORES),
        ("evaluate.endpoint.api_base", "http://127.0.0.1:9", SCORES),
        ("evaluate.endpoint.timeout_s", 5.0, set()),
        ("evaluate.top_k", 3, SCORES),
        ("evaluate.concurrency", 3, set()),
        ("evaluate.budget_usd", 1.0, set()),
        ("evaluate.adapters", "listed", set()),
        ("evaluate.adapters_dir", "/shared", set()),
        ("evaluate.ignored_adapters", "warn", set()),
        ("model.dtype", "bfloat16", DRAWS | {"reference-logps", "adapter"}),
    ],
)
def test_of_a_server_that_evaluates_the_model_counts_and_how_it_is_told_does_not(field, value, direct):
    found = changed(read_config("pocket", SCORED_BY), read_config("pocket", SCORED_BY | {field: value}))
    told = {"report", "version", "promotion"}  # name the whole config
    assert found - told == downstream(direct) - told


def test_of_a_server_that_a_stage_starts_the_precision_counts_and_its_place_does_not():
    started = {"evaluate.sampler": "endpoint", "evaluate.endpoint": "hosted_vllm/m", "vllm.environment": "/opt/vllm"}
    others = {"vllm.environment": "/srv/vllm", "vllm.start_timeout_s": 9.0, "vllm.log_folder": "/logs"}
    base = read_config("pocket", started)
    assert not changed(base, read_config("pocket", started | others | {"vllm.max_model_len": 99}))
    assert changed(base, read_config("pocket", started | {"model.dtype": "bfloat16"})) >= SCORES
    renamed = started | {"evaluate.endpoint": "hosted_vllm/another"}
    assert changed(base, read_config("pocket", renamed)) == {"report", "version", "promotion"}, (
        "it serves model.path whatever its name"
    )


def test_the_sampler_counts_and_the_engines_memory_does_not():
    vllm = {"generate.sampler": "vllm"}
    sizes = {"vllm.tensor_parallel_size": 2, "vllm.gpu_memory_utilization": 0.5, "vllm.max_model_len": 99}
    assert changed(POCKET, read_config("pocket", vllm)) == downstream(DRAWS) | {"report"}
    assert not changed(read_config("pocket", vllm), read_config("pocket", vllm | sizes))


def test_contents_of_a_family_count_and_its_place_does_not(tmp_path):
    one, moved, edited = (tmp_path / name for name in ("one.yaml", "moved.yaml", "edited.yaml"))
    text = Path("docs/model-families.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    one.write_text(text)
    moved.write_text("# the same\n" + text)
    edited.write_text(text.replace("<channel|>", "<end|>"))
    first, same, other = (read_config("pocket", {"model.family": str(path)}) for path in (one, moved, edited))
    assert not changed(first, same)
    assert changed(first, other) >= DRAWS | SCORES | {"candidates"}


def test_contents_of_an_embedders_folder_count(tmp_path):
    config = read_config("pocket", {"induce.embedder": str(tmp_path)})
    empty = induce_labels.work(config, ANY).key
    (tmp_path / "modules.json").write_text("[]")
    assert induce_labels.work(config, ANY).key != empty


def test_contents_of_a_label_set_count_and_its_place_does_not(tmp_path):
    one, moved, edited = (tmp_path / name for name in ("one.yaml", "moved.yaml", "edited.yaml"))
    one.write_text("labels: [{name: a, definition: x}]")
    moved.write_text("labels:\n  - {definition: x, name: a}")
    edited.write_text("labels: [{name: a, definition: y}]")
    first, same, other = (read_config("pocket", {"annotate.label_set": str(path)}) for path in (one, moved, edited))
    assert not changed(first, same)
    assert changed(first, other) >= LABELS | {"transitions", "weights"}


@pytest.mark.parametrize("field", ["show_gold_answers", "may_merge"])
def test_labels_depend_on_what_their_annotators_are_told(field):
    one, other = (
        read_config("pocket", {"annotate.annotator_a": "openai/x", f"annotate.{field}": choice})
        for choice in (True, False)
    )
    assert changed(one, other) == downstream(LABELS) | {"report"}


def test_noise_of_the_offline_annotators_does_not_matter_to_models():
    models = {f"annotate.{role}": f"openai/{role}" for role in ("annotator_a", "annotator_b", "adjudicator")}
    for field, value in {"annotate.cue_drop_prob": 0.3, "annotate.cue_flip_prob": 0.3}.items():
        other = read_config("pocket", models | {field: value})
        assert changed(read_config("pocket", models), other) == {"report", "version", "promotion"}
    by_seed = [collect_annotations.work(read_config("pocket", models | {"seed": seed}), ANY).key for seed in (0, 1)]
    assert by_seed[0] == by_seed[1]


@pytest.mark.parametrize(("field", "value"), [("path", "Qwen/Qwen3-4B"), ("revision", "abc")])
def test_a_model_of_the_hub_is_named_by_path_and_revision(field, value):
    hub = RunConfig.model_validate({"questions": {"train": "nq_open"}})
    other = hub.model_copy(update={"model": hub.model.model_copy(update={field: value})})
    assert changed(hub, other) == downstream({"model"}) | {"report"}


def test_contents_of_a_model_folder_count(tmp_path):
    section = {"model": {"path": str(tmp_path)}, "questions": {"train": "nq_open"}}
    config = RunConfig.model_validate(section)
    empty = prepare_model.work(config).key
    (tmp_path / "config.json").write_text("{}")
    assert prepare_model.work(config).key != empty


def test_contents_of_a_question_file_count_and_its_place_does_not(tmp_path):
    def key(folder, answer="b", **fields):
        path = tmp_path / folder / "set.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"question": "a", "answer": answer}))
        return questions_key({"path": str(path), **fields})

    assert key("one") == key("moved") != key("edited", answer="c")
    others: list[dict[str, Any]] = [{"limit": 1}, {"name": "x"}]
    others += [{"answer_column": "gold"}, {"id_column": "id"}, {"stratum_column": "topic"}]
    assert len({key("one"), *(key("one", **fields) for fields in others)}) == 1 + len(others)


def test_contents_of_all_files_of_a_question_folder_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    before = questions_key({"path": str(tmp_path)})
    (tmp_path / "notes.txt").write_text("no question file")
    assert questions_key({"path": str(tmp_path)}) == before
    (tmp_path / "b.jsonl").write_text('{"question": "a", "answer": "c"}\n')
    assert questions_key({"path": str(tmp_path)}) != before


def test_a_question_set_of_the_hub_is_named_by_id_subset_split_and_revision():
    sets = [{"name": "nq_open", **fields} for fields in ({}, {"path": "a/b"}, {"path": "a/c"}, {"revision": "x"})]
    sets += [{"name": "nq_open", "subset": "x"}, {"name": "nq_open", "split": "validation"}]
    assert len({questions_key(one) for one in sets}) == len(sets)


def questions_key(train):
    return load_questions.work(RunConfig.model_validate({"questions": {"train": train}})).key


def test_contents_of_a_trace_file_count_and_the_instruction_with_them(tmp_path):
    path = tmp_path / "traces.jsonl"

    def key(text, **fields):
        path.write_text(text)
        overrides = {"generate.source": "traces", "generate.traces_path": str(path)}
        config = read_config("pocket", overrides | {f"generate.{k}": v for k, v in fields.items()})
        return select_candidates.work(config, ANY, ANY, None, ANY).key

    assert key("{}") == key("{}", num_draws=5)
    assert len({key("{}"), key("{ }"), key("{}", instruction="Think.")}) == 3


def scores_keys(snippets=ANY, **fields):
    """Variant → the key of its scores, of the pocket's variants and those beside them."""
    config = read_config("pocket", {f"evaluate.{name.replace('__', '.')}": value for name, value in fields.items()})
    return {
        variant: collect_scores.work(config, ANY, ANY, **{"adapter": ANY, "snippets": snippets, "variant": variant}).key
        for variant in ("off", "on", "self_refine", "on_retrieval", "kto", "mr_align", "mr_align_retrieval")
    }


@pytest.mark.parametrize(
    ("sampler", "counts"),
    [
        ({"evaluate.sampler": "vllm"}, True),
        ({"evaluate.sampler": "endpoint", "evaluate.endpoint": "hosted_vllm/m", "vllm.environment": "/opt/vllm"}, True),
        ({"generate.sampler": "vllm"}, False),
    ],
)
def test_the_longest_sequence_decides_where_self_refine_ends_and_nothing_else(sampler, counts):
    def key(variant, **limit):
        config = read_config("pocket", sampler | {"evaluate.self_refine.rounds": 1} | limit)
        return collect_scores.work(config, ANY, ANY, variant=variant).key

    limit = {"vllm.max_model_len": 99}
    assert (key("self_refine") != key("self_refine", **limit)) == counts and key("on") == key("on", **limit)


def test_variants_beside_the_plain_ones_change_no_other_scores():
    def changed_scores(one, other):
        return {variant for variant in one if one[variant] != other[variant]}

    plain = scores_keys()
    assert changed_scores(plain, scores_keys(self_refine__rounds=1)) == {"self_refine"}
    assert changed_scores(plain, scores_keys(retrieval__corpus="pocket", retrieval__top_k=3)) == set()
    with_snippets = {"on_retrieval", "mr_align_retrieval"}
    assert changed_scores(plain, scores_keys(OTHER)) == with_snippets  # what was found counts, not how
    modules = {
        variant: {
            module
            for source in artifact_of("scores").sources
            for module in module_closure(source, tuple(artifact_of("scores").without_of({"variant": variant})))
        }
        for variant in plain
    }
    assert {v for v in modules if "mralign_core.evaluation.self_refine" in modules[v]} == {"self_refine"}
    assert {v for v in modules if "mralign_core.evaluation.snippet_prompt" in modules[v]} == with_snippets


def test_contents_of_a_text_collection_and_what_ranks_it_count_and_its_place_does_not(tmp_path, monkeypatch):
    def key(folder, text, **fields):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.txt").write_text(text)
        corpus = {"evaluate.retrieval.corpus": str(tmp_path / folder)}
        return find_snippets.work(read_config("pocket", {**corpus, **fields}), ANY).key

    one = key("one", "Galen was born in Orsk.")
    assert key("moved", "Galen was born in Orsk.") == one
    assert len({one, key("one", "Another text."), key("one", "Another text.", **{"evaluate.retrieval.top_k": 3})}) == 3
    pocket = {"evaluate.retrieval.corpus": "pocket"}
    worlds = [
        find_snippets.work(read_config("pocket", {**pocket, "model.pocket.world_seed": n}), ANY).key for n in (0, 1)
    ]
    assert len({*worlds, one}) == 3
    monkeypatch.setattr("tasks.fields.version", lambda package: f"another {package}")
    assert key("one", "Galen was born in Orsk.") != one
    claims = {"judge.endpoints": ["openai/m"], "judge.evidence.corpus": "pocket"}
    with monkeypatch.context() as same:
        same.setattr("tasks.fields.version", lambda package: f"a third {package}")
        before = keys(read_config("pocket", claims))
    after = keys(read_config("pocket", claims))
    assert {name for name in before if before[name] != after[name]} == downstream(JUDGED)


def test_contents_of_a_peoples_sheet_change_the_report_alone_and_its_place_does_not(tmp_path):
    def config(name, text):
        (tmp_path / name).write_text(text)
        return read_config("pocket", {"evaluate.people_sheet": str(tmp_path / name)})

    one, moved, filled = config("a.csv", "item,verdict"), config("b.csv", "item,verdict"), config("c.csv", "item")
    gone = read_config("pocket", {"evaluate.people_sheet": str(tmp_path / "gone.csv")})
    assert not changed(one, moved)
    assert changed(one, filled) == changed(one, POCKET) == changed(one, gone) == changed(gone, POCKET) == {"report"}


def test_mr_align_with_snippets_answers_with_the_adapter_of_mr_align():
    [adapter] = [each for each in artifact_of("scores").inputs if each.name == "adapter"]
    read = {
        variant: adapter.names(POCKET, {"variant": variant})
        for variant in ("on", "self_refine", "on_retrieval", "sft", "mr_align_retrieval")
    }
    assert read == {
        "on": [],
        "self_refine": [],
        "on_retrieval": [],
        "sft": ["adapter:sft"],
        "mr_align_retrieval": ["adapter:mr_align"],
    }


def test_variants_have_keys_of_their_own():
    assert len({adapter_work(POCKET, variant).key for variant in POCKET.train.variants}) == 3


def test_a_shards_items_are_its_key_and_not_the_set_they_came_in():
    shard = artifact_of("generations-shard")
    one, two = (Work(shard, POCKET, {"questions": ref, "model": ANY}, rows=(0,)) for ref in (ANY, OTHER))
    for work, digests in ((one, ["a", "b"]), (two, ["a", "c"])):
        vars(work)["items"] = Items(["x", "y"], digests)
    assert one.key == two.key
    both = Work(shard, POCKET, one.inputs, rows=(0, 1))
    vars(both)["items"] = one.items
    assert len({one.key, both.key}) == 2


def test_only_mr_align_depends_on_the_weights():
    for variant in POCKET.train.variants:
        one, two = (adapter_work(POCKET, variant, weights=rewards).key for rewards in (ANY, OTHER))
        assert (one != two) == (variant == "mr_align")


def test_a_setting_of_sft_is_no_setting_of_kto_and_the_other_way_round():
    def changed(overrides):
        other = read_config("pocket", overrides)
        return {
            variant
            for variant in POCKET.train.variants
            if adapter_work(other, variant).key != adapter_work(POCKET, variant).key
        }

    assert changed({"train.sft_learning_rate": 2e-4}) == {"sft"}
    assert changed({"train.learning_rate": 2e-4}) == changed({"train.kl_every": 2}) == {"kto", "mr_align"}
    assert changed({"train.num_epochs": 2}) == {"sft", "kto", "mr_align"}


def test_only_sft_does_without_the_reference():
    for variant in POCKET.train.variants:
        one, two = (adapter_work(POCKET, variant, reference=ref).key for ref in (ANY, OTHER))
        assert (one != two) == (variant != "sft")


@pytest.mark.parametrize(
    ("placebo", "direct"),
    [
        ({"estimate.permute_polarity": True}, {"transitions"}),
        ({"reward.placebo": "within_trace"}, {"weights"}),
        ({"reward.placebo": "other_traces"}, {"weights"}),
        ({"reward.normalize": "mean_one"}, set()),
    ],
)
def test_a_placebo_depends_on_the_seed_and_nothing_else_does(placebo, direct):
    def keys(seed):
        config = read_config("pocket", {"estimate.num_resamples": 0, "seed": seed, **placebo})
        return {
            "transitions": estimate_transitions.work(config, ANY, ANY).key,
            "weights": weigh_segments.work(config, ANY, ANY, ANY).key,
        }

    one, two = keys(0), keys(1)
    assert {name for name in one if one[name] != two[name]} == direct


def test_an_ablation_depends_on_its_arms_its_scores_and_the_worlds_refused():
    grid: list[dict[str, Any]] = [{}, {"ablate.arms": ["kto"]}, {"ablate.confidence": 0.9}]
    found = {ablation_work(read_config("pocket", fields), {"0.0.kto": ANY}, {}).key for fields in grid}
    found |= {
        ablation_work(POCKET, scores, refused).key
        for scores, refused in (
            ({"0.0.kto": OTHER}, {}),
            ({"1.0.kto": ANY}, {}),
            ({"0.0.kto": ANY, "0.1.kto": ANY}, {}),
            ({"0.0.kto": ANY}, {2: "why"}),
        )
    }
    assert len(found) == 7
    mine = [
        read_config(
            "pocket", {"ablate.arms": ["mine"], "ablate.extra_arms": {"mine": {"set": {"reward.clip_max": value}}}}
        )
        for value in (2.0, 4.0)
    ]
    assert len({ablation_work(config, {"0.0.mine": ANY}, {}).key for config in mine}) == 2


def test_what_matrices_are_estimated_from_is_in_their_keys_by_its_content_alone():
    """So a default run has the keys that it had before there was a choice."""
    exhaustive = {"generate.draws": "exhaustive"}
    selected, matched = (
        read_config("pocket", {**exhaustive, "estimate.traces": choice}) for choice in ("selected", "matched")
    )
    left_out = {"reward": RewardConfig(leave_own_question_out=True)}
    for name in ("transitions", "diagnostics", "weights", "agreement"):
        fields = [artifact_of(name).fingerprint(config, {}) for config in (selected, matched)]
        fields += [artifact_of(name).fingerprint(config.model_copy(update=left_out), {}) for config in (selected,)]
        assert fields[0] == fields[1] and "all_draws" not in json.dumps(fields) and "selected" not in json.dumps(fields)
    works = [
        estimate_transitions.work(selected, ANY, OTHER),
        estimate_transitions.work(matched, None, None, ANY, OTHER),
    ]
    assert [set(work.inputs) for work in works] == [{"candidates", "annotations"}] * 2
    assert works[0].key == works[1].key
    with pytest.raises(TypeError, match="is made from 'thinking-draws', which is not given"):
        estimate_transitions.work(matched, ANY, OTHER)


def test_weights_are_made_of_draws_only_where_the_own_question_is_left_out():
    def inputs(**fields):
        config = read_config("pocket", {"generate.draws": "exhaustive", **fields})
        return set(weigh_segments.work(config, ANY, ANY, ANY, ANY, ANY).inputs)

    plain, left_out = {"estimate.traces": "all_draws"}, {"reward.leave_own_question_out": True}
    assert inputs(**plain) == inputs(**left_out) == {"candidates", "annotations", "transitions"}
    assert inputs(**plain, **left_out) - inputs() == {"thinking-draws", "draw-annotations"}


def test_a_missing_input_is_refused():
    with pytest.raises(TypeError, match="annotations"):
        estimate_transitions.work(POCKET, ANY)
    with pytest.raises(TypeError, match="is made from 'weights'"):
        adapter_work(POCKET, "mr_align", weights=None)


@pytest.mark.parametrize("name", ["generations-shard", "generations", "scores-shard", "scores"])
def test_what_ends_a_sample_is_in_the_key(name):
    artifact = artifact_of(name)
    without = tuple(artifact.without(POCKET))
    known = {module for source in artifact.sources for module in module_closure(source, without)}
    assert {
        "mralign_core.generation.open_sampler",
        "mralign_core.generation.transformers_sampler",
        "mralign_core.models.load",
        "mralign_core.generation.control_tokens",
    } <= known

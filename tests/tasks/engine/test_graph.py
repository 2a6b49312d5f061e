"""An artifact is declared in one place: all else follows, for one that only these tests know too."""

import ast
import json
from pathlib import Path

import pytest

from flows.commands.cli import read_config
from mralign_core.errors import ConfigError
from mralign_core.storage import ArtifactStore, render_lineage
from mralign_core.storage.digests import UNRELATED, function_closure, module_closure
from tasks.engine import STAGES
from tasks.engine.graph import Input, graph, mermaid, shard_kinds, stage_of
from tasks.engine.last_run import LastRun, remember
from tasks.engine.one_task import run_one
from tasks.engine.plan import plan
from tasks.engine.run import Built
from tasks.engine.task import artifact
from tasks.prepare import load_questions
from tests.pocket_store import small_config

ROOT = Path(__file__).parents[3]
GRAPH = graph()


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path / "store")


@pytest.fixture
def toy(monkeypatch):
    """A new artifact, declared as CONTRIBUTING.md says: what it has of the questions, for one variant or another."""
    monkeypatch.setattr("tasks.engine.graph._ARTIFACTS", dict(GRAPH))

    @artifact(
        "toy",
        stage="prepare",
        part=("variant",),
        parts=lambda config: [{"variant": variant} for variant in config.train.variants],
        inputs=(Input("questions"),),
        fields=lambda config: {"seed": config.seed},
    )
    def count_questions(making) -> Built:
        """Count the questions."""
        rows = len(making.table("questions", "questions.parquet"))
        (making.directory / "toy.json").write_text(json.dumps([rows, making.part["variant"]]))
        return Built(counts={"rows": rows})

    return count_questions


def test_a_toy_is_found_in_key_plan_one_task_last_run_lineage_and_graph(config, toy):
    questions = load_questions.run_here(config)
    keys = {toy.work(config, questions, variant).key for variant in config.train.variants}
    other = config.model_copy(update={"seed": 1})
    assert len(keys | {toy.work(other, questions, "kto").key}) == len(config.train.variants) + 1

    planned = {entry.name: entry.status for entry in plan(config).everything}
    assert planned["toy kto"] == "to compute" and planned["questions"] == "cached"
    remember(config, questions=questions)
    ref = run_one(config, "toy", shard=0, variant="kto", named={})
    assert ref == toy.run_here(config, questions, variant="kto")
    assert {entry.name: entry.status for entry in plan(config).everything}["toy kto"] == "cached"

    remember(config, **{"toy:kto": ref})
    assert LastRun(config)("toy:kto") == ref
    assert run_one(config, "toy", shard=0, variant="kto", named={"questions": questions.key}) == ref
    with pytest.raises(ConfigError, match=r"--variant on: toy is made for .*kto"):
        run_one(config, "toy", shard=0, variant="on", named={})

    lineage = render_lineage(ArtifactStore(config.storage).lineage(ref))
    assert "toy/" in lineage and "questions/" in lineage
    assert "questions --> toy" in mermaid() and stage_of("toy:kto") == "prepare"


def test_an_artifact_that_is_not_made_yet_names_the_stage_to_run(config, toy):
    with pytest.raises(Exception, match="run stage 'prepare' first"):
        run_one(config, "toy", shard=0, variant="kto", named={})
    with pytest.raises(ConfigError, match="no artifact 'cake': name a stage or one of questions, "):
        run_one(config, "cake", shard=0, variant="kto", named={})
    for name in ("ablation", "agreement"):
        with pytest.raises(ConfigError, match=f"{name} is not made by itself: its command is mralign "):
            run_one(config, name, shard=0, variant="kto", named={})


def test_a_name_is_given_once(toy):
    with pytest.raises(TypeError, match="'toy' is built by"):
        artifact("toy", stage="prepare", fields=lambda _: {})(lambda making: Built())


def test_every_stage_has_one_main_artifact():
    for config in (
        read_config("pocket"),
        read_config("pocket", {"generate.source": "traces", "generate.traces_path": "x"}),
    ):
        for stage in STAGES:
            assert sum(one.stage == stage and one.is_main(config) for one in GRAPH.values()) == 1, stage


def test_inputs_come_before_what_is_made_of_them():
    names = list(GRAPH)
    for one in GRAPH.values():
        assert all(names.index(each.name) < names.index(one.name) for each in one.inputs)


# Which artifacts a module of the core decides, under the pocket's config. What a stage's file names besides is glue.
ASKED = {"questions", "evaluation-questions"}
DRAWS = {"generations-shard", "generations"}
SELECTED = {"candidates", "thinking-draws"}
LABELS = {"annotations-shard", "annotations", "draw-annotations", "held-out-annotations"}
SCORES = {"scores-shard", "scores"}
JUDGED = {"judgements-shard", "judgements"}
WEIGHED = {"transitions", "weights"}
DECIDES = {
    "pocket.grammar": {"model"},
    "pocket.model": {"model"},
    "pocket.quality": {"model"},
    "pocket.world": ASKED | {"model"},
    "questions.loading": ASKED,
    "questions.overlap": ASKED
    | SELECTED
    | DRAWS
    | {"version", "promotion", "training-traces"},  # which questions are the same
    "generation.transformers_sampler": DRAWS | SCORES,
    "generation.vllm_sampler": set(),
    "generation.endpoint_sampler": set(),
    "generation.sampling": DRAWS,
    "generation.select_traces": DRAWS | SELECTED,
    "generation.thinking_draws": {"thinking-draws"},
    "method.both_sides": {"thinking-draws"},
    "generation.importing": set(),
    "generation.scoring": DRAWS | SCORES | {"results", "report", "promotion"},
    "annotation.annotate": LABELS | {"label-set"},
    "annotation.cue": LABELS | {"label-set"},
    "annotation.human": set(),  # of configs that name a person
    "distillation.annotator": {"distillation"},  # and labels, of configs that name a distilled annotator
    "distillation.fitting": {"distillation"},
    "distillation.measuring": {"distillation"},
    "distillation.teaching": {"distillation"},
    "annotation.failures": LABELS | JUDGED | {"results", "report", "agreement"},
    "method.consolidation": LABELS
    | JUDGED
    | {"label-set", "distillation"},  # says what annotators are shown, beside judges
    "judging.judge": JUDGED,
    "judging.claims": JUDGED,
    "judging.claim_replies": JUDGED,
    "judging.evidence": JUDGED,
    "judging.claim_scores": {"results", "report", "promotion"},
    "judging.prompts": JUDGED,
    "judging.replies": JUDGED,
    "judging.similarity": JUDGED,
    "judging.verdicts": {"results", "report", "promotion"},
    "llm.batch": set(),
    "llm.batch_endpoint": set(),
    "llm.batch_items": set(),
    "llm.batch_lines": set(),
    "estimation.corpus": WEIGHED | {"diagnostics", "diagnostic-figures", "report", "agreement"},
    "training.fit": {"adapter"},
    "training.policy_logps": {"policy-logps"},
    "training.examples": {"reference-logps", "adapter", "policy-logps", "version"},
    "training.card": {"adapter", "version"},
    "training.export_card": {"version"},
    "evaluation.metrics": {"results", "report", "version", "ablation", "ablation-page", "promotion"},
    "evaluation.decisions": {"results", "promotion"},
    "evaluation.held_out": SCORES | {"results", "report", "promotion"},
    "evaluation.held_out_traces": {"held-out-traces", "report"},
    "evaluation.mentions": {"report"},
    "evaluation.self_refine": SCORES | {"report"},  # of its own variant; test_keys.py
    "evaluation.snippet_prompt": SCORES,  # of variants with snippets
    "evaluation.token_costs": {"results", "report"},
    "retrieval.bm25": {"snippets"},
    "retrieval.corpus": {"snippets"},
    "estimation.thinking_change": {"report"},
    "reporting.parting": {"report"},
    "reporting.paper_tables": {"ablation-page"},
    "reporting.token_table": {"report"},
    "reporting.report": {"report"},
    "reporting.diagnostic_figures": {"diagnostic-figures", "report"},
    "reporting.ablation_figure": {"ablation-page"},
    "ablation.paired": {"ablation", "ablation-page"},
    "versions.record": {"version", "promotion"},
    "versions.version": set(),
    "retraining.gate": {"promotion"},
    "retraining.training_traces": {"training-traces"},
    "retraining.objections": {"promotion"},
    "retraining.history": set(),
    "retraining.spending": set(),
    "versions.aliases": set(),
    "versions.differences": set(),
    "comparison.agreement": {"agreement"},
    "comparison.sheets": {"agreement"},
    "comparison.panels": {"agreement"},
    "induction.clustering": {"label-set"},
}


EVIDENCE = {"judge.endpoints": ["openai/m"]}


def deciding(module, config):
    return {
        one.name
        for one in GRAPH.values()
        if any(f"mralign_core.{module}" in module_closure(source, tuple(one.without(config))) for source in one.sources)
    }


@pytest.mark.parametrize("module", DECIDES)
def test_a_module_decides_these_artifacts_and_no_other(module):
    assert deciding(module, read_config("pocket")) == DECIDES[module]


@pytest.mark.parametrize(
    ("overrides", "module", "artifacts"),
    [
        ({"generate.sampler": "vllm"}, "generation.vllm_sampler", DRAWS),
        ({"evaluate.sampler": "vllm"}, "generation.vllm_sampler", SCORES),
        ({"generate.sampler": "vllm"}, "generation.transformers_sampler", SCORES),
        ({"evaluate.sampler": "endpoint"}, "generation.endpoint_sampler", SCORES),
        ({"evaluate.sampler": "endpoint"}, "serving.adapters", set()),
        ({"generate.source": "traces", "generate.traces_path": "x"}, "generation.importing", {"candidates"}),
        ({"evaluate.retrieval.corpus": "pocket"}, "pocket.grammar", {"model", "snippets"}),
        (EVIDENCE | {"judge.evidence.corpus": "elsewhere"}, "retrieval.bm25", {"snippets"} | JUDGED),
        (EVIDENCE | {"judge.evidence.corpus": "elsewhere"}, "pocket.world", ASKED | {"model"}),
        (EVIDENCE | {"judge.evidence.corpus": "pocket"}, "pocket.grammar", {"model"} | JUDGED),
        (EVIDENCE | {"judge.evidence.search": "http://127.0.0.1:9"}, "retrieval.bm25", {"snippets"}),
    ],
)
def test_what_a_module_decides_depends_on_the_config(overrides, module, artifacts):
    assert deciding(module, read_config("pocket", overrides)) == artifacts


BY_VALUE = "what it says is in the key by value"
DECIDES_NOTHING = {
    "label_sets": (
        {"transitions", "diagnostics", "diagnostic-figures", "weights", "report", "agreement", "distillation"},
        BY_VALUE,
    ),
    "models.locate": (
        {*SELECTED, "reference-logps", "policy-logps"},
        "finds the files of an input, whose content is in the key",
    ),
    "generation.checking": ({"model"}, "refuses weights, and changes none"),
    "generation.transformers_sampler": ({"model"}, "asks the finished model, whose quality gates refuse it or not"),
    "models.load": ({"model"}, "loads the finished model for its quality gates"),
    "generation.outcomes": ({"candidates"}, "makes the message of an error"),
    "processes.memory": ({"generations-shard", "scores-shard"}, "gives memory back to the system"),
    "serving.vllm_server": ({"generations-shard", "scores-shard"}, "starts what is asked, at the dtype in the key"),
    "reporting.curves_so_far": ({"adapter"}, "draws what is on the run's page while it trains"),
    "reporting.style": ({"adapter"}, "the same"),
    "processes.launch": (
        {"reference-logps", "adapter", "policy-logps"},
        "has other processes call what one process would",
    ),
    "versions.version": ({"promotion", "training-traces"}, "reads an input, whose content is in the key"),
    "schemas.annotations": ({"promotion"}, "names the columns of an input"),
    "versions.aliases": ({"promotion", "training-traces"}, "cuts the key out of an id, and names a version in errors"),
    "schemas.candidates": ({"promotion"}, "names the columns of an input"),
    "annotation.failures": ({"promotion"}, "reads what judges failed on, which is in a judgement's content"),
    "distillation.published": ({"annotations-shard"}, "opens a distilled annotator, whose content is in the key"),
    "rating.human_sets": ({"annotations-shard", "distillation"}, "reads labels of people, whose content is in the key"),
    "reporting.run_findings": ({"results", "version"}, "names the files; evaluation.metrics says what is in them"),
    "reporting.judged_findings": ({"results"}, "names the files; judging.verdicts says what is in them"),
    "reporting.decision_findings": ({"results"}, "names the files; evaluation.decisions says what is in them"),
}
"""Modules that build functions name, and that their artifacts' ``sources`` don't reach: of which artifacts, and why."""


def core_imports(nodes):
    """Name → module of the core that it is imported from, or is, of import statements anywhere in some nodes."""
    core, found = Path("mralign_core"), {}
    for node in (each for node in nodes for each in ast.walk(node) if isinstance(each, ast.ImportFrom)):
        if (node.module or "").partition(".")[0] == "mralign_core":
            for alias in node.names:
                path = core.joinpath(*str(node.module).split(".")[1:], alias.name)
                is_module = Path(ROOT, path).is_dir() or Path(ROOT, f"{path}.py").is_file()
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}" if is_module else node.module
    return found


def named_modules(build):
    """The modules of the core that a build function names by import, itself or in what it calls in ``tasks/``."""
    named = set()
    for (path, _), definition in function_closure(build).items():
        of_file = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        names = {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}
        named |= {module for name, module in core_imports(of_file).items() if name in names}
        named |= set(core_imports([definition]).values())
    return {module for module in named if module.split(".")[1] not in UNRELATED}


@pytest.mark.parametrize("name", GRAPH)
def test_what_a_build_function_names_of_the_core_is_in_the_key_or_decides_nothing(name):
    one = GRAPH[name]
    exempt = {f"mralign_core.{module}" for module, (names, _) in DECIDES_NOTHING.items() if name in names}
    assert unkeyed(one) == exempt, "name it in `sources`, or say why it decides nothing"
    assert one.other_way is None or unkeyed(one.other_way) <= exempt


def unkeyed(way):
    keyed = {module for source in way.sources for module in module_closure(source)}
    return named_modules(way.build) - keyed


def test_the_modules_that_a_build_function_names_are_found():
    assert named_modules(GRAPH["adapter"].build) >= {  # in its body, in a helper's, and at the top of the file
        "mralign_core.training.fit",
        "mralign_core.training.examples",
        "mralign_core.models.locate",
    }
    assert named_modules(GRAPH["weights"].build) >= {"mralign_core.estimation.reading"}  # of another file


def test_each_kind_of_shard_says_what_is_joined_from_it_and_what_is_in_its_key():
    kinds = shard_kinds()
    assert {name: (set(kind.joined), set(kind.keyed)) for name, kind in kinds.items()} == {
        "generations-shard": ({"generations"}, {"model"}),
        "annotations-shard": ({"annotations", "draw-annotations", "held-out-annotations"}, set()),
        "scores-shard": ({"scores"}, {"model", "adapter"}),
        "judgements-shard": ({"judgements"}, set()),
    }

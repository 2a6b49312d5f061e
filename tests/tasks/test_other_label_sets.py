"""Nothing assumes the paper's 15 labels: every stage from annotation to the report, on other label sets."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from published_candidates import candidate_row

from mralign_core.annotation.cue import HABITS, score_cues
from mralign_core.config import load_config
from mralign_core.estimation.matrices import TransitionMatrices
from mralign_core.label_sets import PAPER_LABEL_SET, load_label_set
from mralign_core.pocket.grammar import WORDINGS, write_trace
from mralign_core.pocket.world import build_world
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.compare_annotators import RUN, compare_annotations, read_agreement
from tasks.estimate import diagnose_transitions, estimate_transitions
from tasks.evaluate import compute_results, write_report
from tasks.induce_taxonomy import CLUSTERS, LABEL_SET, MAP_PNG, OPEN_LABELS, induce_labels, read_clusters
from tasks.reward import weigh_segments
from tests.stages import label

CONFIGS = Path(__file__).resolve().parents[2] / "deployments" / "configs"
PLAIN = CONFIGS / "label_sets" / "plain.yaml"
NUM_TRACES = 60
MEANT = {
    "framing": "plan",
    "decomposition": "plan",
    "backtracking": "doubt",
    "self_verification": "doubt",
    "evaluation": "doubt",
    "retrieval": "recall",
    "chaining": "infer",
    "causal_reasoning": "infer",
    "analogy": "liken",
    "comparison": "liken",
    "case_analysis": "liken",
    "categorization": "liken",
    "synthesis": "conclude",
    "summarization": "conclude",
    "explanation": "conclude",
}
"""The paper's label → the plain one."""


def config_of(root, **overrides):
    fields = {name.replace("__", "."): value for name, value in overrides.items()}
    small = {"estimate.num_resamples": 20, "compare.num_resamples": 100, "evaluate.label_thinking": "none"}
    return load_config(CONFIGS / "pocket.yaml", {"storage.root": str(root), **small, **fields})


def publish(store, folder, stage, frame, table, **more):
    folder.mkdir()
    write_table(folder, f"{stage}.parquet", frame, table)
    for name, value in more.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return store.publish(stage, "made-for-a-test", folder, parents=[], fingerprint={}, table=table.name)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A store with questions and candidates: traces of the pocket grammar, cut and judged like a model's."""
    root = tmp_path_factory.mktemp("store")
    store, world, rng = ArtifactStore(config_of(root).storage), build_world(seed=0), np.random.default_rng(0)
    rows = []
    for number in range(NUM_TRACES):
        question = world.questions[int(rng.integers(len(world.questions)))]
        trace = write_trace(world, question, rng)
        polarity = "positive" if trace.answer == question.answer else "negative"
        texts = [segment.text for segment in trace.segments]
        rows.append(candidate_row(f"t{number}", texts, question=question.text, polarity=polarity))
    funnel = [{"step": "traces", "kept": NUM_TRACES, "dropped": 0, "reason": ""}]
    scratch = tmp_path_factory.mktemp("scratch")
    candidates = publish(store, scratch / "c", "candidates", pd.DataFrame(rows), CANDIDATES, funnel=funnel)
    # Nothing is evaluated here: that needs a model.
    asked = world.questions_frame().query("split == 'train'")
    questions = publish(store, scratch / "q", "questions", asked, QUESTIONS, guessable=[])
    return root, candidates, questions


@pytest.fixture(scope="module")
def induced(start):
    """The label set file that induction makes of these candidates, offline."""
    root, candidates, _ = start
    ref = induce_labels.run_here(config_of(root), candidates)
    return ArtifactStore(config_of(root).storage).open_file(ref, LABEL_SET)


@pytest.fixture(scope="module", params=["plain", "induced", "one"])
def run(request, start, tmp_path_factory):
    """Config, artifacts and taxonomy of a run under another label set: ours, the induced one, one single label."""
    root, candidates, questions = start
    path = {"plain": PLAIN, "one": tmp_path_factory.mktemp("one") / "one.yaml"}.get(request.param)
    if path is None:
        path = request.getfixturevalue("induced")
    if request.param == "one":
        path.write_text(yaml.safe_dump({"labels": [{"name": "say", "definition": "says", "cues": {r"\bis\b": 8}}]}))
    config = config_of(root, annotate__label_set=str(path))
    annotations = label(config, candidates)
    transitions = estimate_transitions.run_here(config, candidates, annotations)
    weights = weigh_segments.run_here(config, candidates, annotations, transitions)
    artifacts = {"questions": questions, "evaluation_questions": questions}
    artifacts |= {"candidates": candidates, "annotations": annotations}
    artifacts |= {"transitions": transitions, "weights": weights}
    return config, artifacts, load_label_set(path).taxonomy


def test_only_its_labels_are_given(run):
    config, artifacts, taxonomy = run
    rows = ArtifactStore(config.storage).read_table(artifacts["annotations"], "annotations.parquet")
    given = set(rows["labels"].explode().dropna())
    assert given and given <= set(taxonomy.labels)
    assert rows["trace_id"].nunique() == NUM_TRACES


def test_matrices_have_a_state_a_label_and_two_more(run):
    config, artifacts, taxonomy = run
    path = ArtifactStore(config.storage).open_file(artifacts["transitions"], "transitions.npz")
    matrices = TransitionMatrices.load(path)
    num_states = taxonomy.num_labels + 2
    assert num_states != PAPER_LABEL_SET.taxonomy.num_states
    for estimate in matrices.estimates.values():
        assert estimate.p.shape == (num_states, num_states)
        assert estimate.p.sum(axis=1) == pytest.approx(np.ones(num_states))


def test_every_segment_has_a_weight_inside_the_clip(run):
    config, artifacts, _ = run
    store = ArtifactStore(config.storage)
    rows = store.read_table(artifacts["weights"], "weights.parquet")
    num_segments = store.read_table(artifacts["candidates"], "candidates.parquet")["segments"].map(len).sum()
    assert len(rows) == num_segments
    assert rows["weight"].between(config.reward.clip_min - 1e-9, config.reward.clip_max + 1e-9).all()


def test_diagnostics_and_agreement_go_by_it(run):
    config, artifacts, taxonomy = run
    of = {name: artifacts[name] for name in ("candidates", "annotations", "transitions")}
    assert diagnose_transitions.run_here(config, *of.values()).uri
    agreement = compare_annotations.run_here(config, artifacts["candidates"], {RUN: artifacts["annotations"]})
    labels = {row["label"] for row in read_agreement(config, agreement)["per_label"]}
    assert labels and labels <= set(taxonomy.labels)


def test_the_report_shows_its_labels_and_none_of_the_papers(run):
    config, artifacts, taxonomy = run
    store = ArtifactStore(config.storage)
    # The report names the model by its digest only, so that any artifact will do here.
    artifacts = {**artifacts, "model": artifacts["candidates"]}
    traced = {"source": "traces", "traces_path": "none.jsonl"}  # so that no draws are shown
    config = config.model_copy(update={"generate": config.generate.model_copy(update=traced)})
    traces = [artifacts[name] for name in ("candidates", "annotations", "transitions")]
    artifacts["diagnostics"] = diagnose_transitions.run_here(config, *traces)
    results = compute_results.run_here(config, {}, {}, artifacts["evaluation_questions"])
    page = store.open_file(write_report.run_here(config, **artifacts, results=results), "report.html").read_text()
    assert all(f">{label}<" in page for label in taxonomy.labels)
    # As a text of their own: as words of a sentence the report may use them.
    foreign = set(PAPER_LABEL_SET.taxonomy.labels) - set(taxonomy.labels)
    assert not [label for label in foreign if f">{label}<" in page]


def test_cues_of_the_plain_set_know_every_wording_of_the_pocket_world():
    lexicon = load_label_set(PLAIN).lexicon
    assert lexicon
    for meaning, wordings in WORDINGS.items():
        for wording in wordings:
            scores = score_cues(re.sub(r"{\w+}", "Rome", wording), HABITS["a"], lexicon)
            assert max(scores, key=lambda name: scores[name]) == MEANT[meaning], wording


def test_an_induced_set_is_found_again_and_depends_on_what_made_it(start, induced, caplog):
    root, candidates, _ = start
    ref = induce_labels.run_here(config_of(root), candidates)
    store = ArtifactStore(config_of(root).storage)
    assert store.open_file(ref, LABEL_SET) == induced
    assert induce_labels.run_here(config_of(root, annotate__label_set=str(PLAIN)), candidates) == ref
    for field, value in {"induce__min_frequency": 4, "induce__xi": 0.03, "seed": 1}.items():
        assert induce_labels.run_here(config_of(root, **{field: value}), candidates).key != ref.key
    assert set(store.manifest(ref).files) >= {LABEL_SET, CLUSTERS, OPEN_LABELS, MAP_PNG}


def test_clusters_and_table_say_the_same(start, induced):
    root, candidates, _ = start
    ref = induce_labels.run_here(config_of(root), candidates)
    found = read_clusters(config_of(root), ref)
    rows = pd.read_csv(ArtifactStore(config_of(root).storage).open_file(ref, OPEN_LABELS))
    assert {label["name"] for label in found["labels"]} == set(load_label_set(induced).taxonomy.labels)
    assert sum(label["num_instances"] for label in found["labels"]) == rows.loc[rows["label"].notna(), "count"].sum()
    assert sum(found["noise"].values()) == rows.loc[rows["is_noise"], "count"].sum()
    assert sum(found["too_rare"].values()) == rows.loc[~rows["is_kept"], "count"].sum()
    assert found["counts"]["instances"] == rows["count"].sum()

"""Comparing annotation sets: joins, every pair, matrices and weights, and what can't be compared."""

import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from mralign_core.comparison.agreement import compare
from mralign_core.comparison.annotation_sets import SET_COLUMNS, AnnotationSet, join, panel_sets, unite_equal
from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.errors import DataError
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.traces import labelled_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.method.agreement import agreement
from mralign_core.reporting.agreement_figures import telling_pairs
from mralign_core.reporting.agreement_tables import agreement_summary, write_comparison

NO_RULES = pd.DataFrame(columns=["panel", "rule", "segments", "share"])


def set_of(name, labels):
    """An annotation set from {(trace, segment): labels}."""
    rows = [(trace, segment, segment, list(given), [1.0] * len(given)) for (trace, segment), given in labels.items()]
    return AnnotationSet(name, pd.DataFrame(rows, columns=SET_COLUMNS))


@pytest.fixture
def candidates(candidates_of):
    return candidates_of(*[["a", "b", "c"]] * 12)


@pytest.fixture
def random_set(candidates, taxonomy):
    def build(name, seed, noise=0.0):
        """Labels drawn by a seed, a share of them exchanged by another one."""
        rng, other = np.random.default_rng(0), np.random.default_rng(seed)
        labels = {}
        for trace in candidates["trace_id"]:
            for segment in range(3):
                pick = [str(x) for x in rng.choice(taxonomy.labels, rng.integers(1, 3), replace=False)]
                labels[trace, segment] = [str(other.choice(taxonomy.labels))] if other.random() < noise else pick
        return set_of(name, labels)

    return build


@pytest.fixture
def compared(candidates, taxonomy):
    def run(*sets, estimate=None, reward=None, seed=3):
        return compare(
            candidates,
            sets,
            taxonomy,
            estimate=estimate or EstimateConfig(),
            reward=reward or RewardConfig(),
            num_resamples=100,
            confidence=0.9,
            seed=seed,
        )

    return run


def test_sets_are_joined_by_trace_and_segment_and_the_rest_is_counted():
    a = set_of("a", {("t0", 0): ["ask"], ("t0", 1): [], ("t1", 0): ["tell"]})
    b = set_of("b", {("t1", 0): ["ask"], ("t0", 0): ["ask", "tell"], ("t2", 0): ["ask"], ("t2", 1): ["ask"]})
    joined = join(a, b)
    assert joined.segments.values.tolist() == [["t0", 0], ["t1", 0]]
    assert (joined.a, joined.b) == ([{"ask"}, {"tell"}], [{"ask", "tell"}, {"ask"}])
    assert joined.traces.tolist() == [0, 1]
    assert (joined.num_traces, joined.num_only_a, joined.num_only_b) == (2, 1, 2)


def test_a_panel_has_three_sets(candidates):
    row = {"trace_id": "t0", "segment": 0, "step": 0, "rule": "merge"}
    votes = {"labels": ["ask", "tell"], "labels_a": ["ask"], "labels_b": [], "confidences": [9.0, 8.0]}
    table = pd.DataFrame([{**row, **votes, "confidences_a": [9.0], "confidences_b": []}])
    sets = panel_sets("p", table, candidates)
    assert [(each.name, each.rows["labels"][0]) for each in sets] == [
        ("p A", ["ask"]),
        ("p B", []),
        ("p pipeline", ["ask", "tell"]),
    ]
    assert all(list(each.rows) == SET_COLUMNS for each in sets)
    with pytest.raises(DataError, match=r"panel 'p': 1 trace\(s\) are not among the 12 candidates, the first is 'x'"):
        panel_sets("p", table.assign(trace_id="x"), candidates)


def test_equal_sets_are_compared_once_and_named(random_set):
    one, same, other = random_set("one", 1), random_set("same", 2), random_set("other", 3, noise=0.5)
    kept, equal = unite_equal([one, other, same])
    assert [each.name for each in kept] == ["one", "other"]
    assert equal == {"same": "one"}


def test_every_pair_level_and_rule_is_there_and_right(compared, random_set, taxonomy):
    a, b, c = (random_set(name, seed, noise) for name, seed, noise in (("a", 1, 0), ("b", 2, 0.3), ("c", 3, 0.9)))
    found = compared(a, b, c)
    assert len(found.pairs) == 3 * 2 * 2
    assert len(found.per_label) == 3 * taxonomy.num_labels
    joined = join(a, c)
    row = found.pairs.query("a == 'a' and b == 'c' and level == 'label' and rule == 'entailment'").iloc[0]
    by_hand = agreement(joined.a, joined.b, "entailment")
    assert (row["agreement"], row["by_chance"], row["kappa"]) == pytest.approx(by_hand[1:])
    assert row["kappa_low"] <= row["kappa"] <= row["kappa_high"]
    kappas = found.pairs.query("level == 'label' and rule == 'strict'").set_index(["a", "b"])["kappa"]
    assert kappas["a", "b"] > kappas["a", "c"]
    assert (found.pairs["only_a"] + found.pairs["only_b"] == 0).all() and found.skipped.empty


def test_a_pairs_interval_does_not_depend_on_the_other_sets(compared, random_set):
    a, b, c = (random_set(name, seed, 0.4) for name, seed in (("a", 1), ("b", 2), ("c", 3)))
    alone, among = compared(b, c).pairs, compared(a, b, c).pairs
    pd.testing.assert_frame_equal(alone, among.query("a == 'b' and b == 'c'").reset_index(drop=True))


def test_matrices_and_weights_are_those_of_the_pipeline(compared, random_set, candidates, taxonomy):
    a, b = random_set("a", 1), random_set("b", 2, noise=0.5)
    found = compared(a, b)
    frames = []
    for each in (a, b):
        traces = labelled_traces(candidates, each.rows, taxonomy=taxonomy)
        matrices = estimate_transitions(traces, EstimateConfig(), taxonomy)
        frames.append(
            (matrices, weigh_segments(traces, matrices, RewardConfig(), confidence=0.95)["weight"].to_numpy(float))
        )
    (one, w_one), (other, w_other) = frames
    distance = np.abs(one.estimates["all"].p - other.estimates["all"].p).sum(axis=1)
    supported = (one.estimates["all"].counts.sum(axis=1) >= 1) & (other.estimates["all"].counts.sum(axis=1) >= 1)
    row = found.matrices.set_index("matrix").loc["all"]
    assert row["mean_l1"] == pytest.approx(distance[supported].mean())
    assert row["total_variation"] == pytest.approx(row["mean_l1"] / 2)
    assert not supported[-1], "<stop> is left by nothing, and would flatter the mean"
    shift = found.weights.iloc[0]
    assert shift["mean_abs_log_ratio"] == pytest.approx(np.abs(np.log(w_one) - np.log(w_other)).mean()) and len(w_one)
    assert shift["num_segments"] == 36 and row["traces"] == 12


def test_an_annotator_shifts_nothing_against_itself(compared, random_set):
    a = random_set("a", 1)
    found = compared(a, a._replace(name="again"))
    assert (found.pairs["agreement"] == 1).all() and (found.matrices["mean_l1"] == 0).all()
    assert found.weights.iloc[0]["mean_abs_log_ratio"] == 0


def test_matrices_rest_on_traces_that_both_rated_whole(compared, random_set):
    a = random_set("a", 1)
    rater = AnnotationSet("rater", a.rows.drop(index=a.rows.query("trace_id == 't3' and segment == 1").index))
    found = compared(a, rater)
    assert found.pairs["segments"].unique().tolist() == [35] and found.pairs["only_a"].unique().tolist() == [1]
    assert found.matrices["traces"].unique().tolist() == [11]
    assert found.weights.iloc[0]["num_segments"] == 33


def merged(each, name):
    """The same labels, but that the first two segments of a trace are one step (and so have equal labels)."""
    rows = each.rows.sort_values(["trace_id", "segment"], ignore_index=True)
    second = rows["segment"] == 1
    rows.loc[second, ["labels", "confidences"]] = rows.loc[rows["segment"] == 0, ["labels", "confidences"]].to_numpy()
    return AnnotationSet(name, rows.assign(step=rows["step"].where(~second, 0)))


def test_a_sheet_that_can_not_merge_shifts_nothing_where_its_labels_are_the_same(compared, random_set, tmp_path):
    pipeline, other = merged(random_set("a", 1), "run pipeline"), merged(random_set("b", 2, 0.5), "run B")
    found = compared(pipeline, other, pipeline.unmerged()._replace(name="rater"))
    equal = found.matrices.query("a == 'run pipeline' and b == 'rater'")
    assert (equal["mean_l1"] == 0).all() and len(equal) == 3
    shift = found.weights.set_index(["a", "b"])
    assert shift.loc[("run pipeline", "rater"), "share_crossing"] == 0
    assert shift["steps"].to_dict() == {
        ("run pipeline", "run B"): "as merged",
        ("run pipeline", "rater"): "one a segment",
        ("run B", "rater"): "one a segment",
    }
    assert shift["mean_abs_log_ratio"].iloc[0] != shift["mean_abs_log_ratio"].iloc[2], "other steps, other weights"
    write_comparison(tmp_path, found, notes={}, rules=NO_RULES)
    text = (tmp_path / "agreement.md").read_text()
    assert "| run pipeline · rater | 12 | one a segment | 0.000 |" in text and "| 12 | as merged |" in text


@pytest.mark.parametrize("num_traces", [1, 9, 10])
def test_few_traces_give_no_interval_and_it_is_said(compared, random_set, tmp_path, num_traces):
    few = [f"t{n}" for n in range(num_traces)]
    a, b = (random_set(name, seed, 0.5) for name, seed in (("a", 1), ("b", 2)))
    found = compared(a._replace(rows=a.rows[a.rows["trace_id"].isin(few)]), b)
    ends = ["agreement_low", "agreement_high", "kappa_low", "kappa_high"]
    scores = found.pairs.query("level == 'label' and rule == 'strict'")
    assert scores[["agreement", "kappa"]].notna().all(axis=None)
    assert scores[ends].notna().all(axis=None) == scores[ends].notna().any(axis=None) == (num_traces == 10)
    write_comparison(tmp_path, found, notes={}, rules=NO_RULES)
    text = (tmp_path / "agreement.md").read_text()
    kappa = f"{scores['kappa'].iloc[0]:.2f}".replace("-", "−")
    assert (f"{kappa} [–]" in text) == (num_traces < 10)
    assert "[–] where both sets share traces of fewer than 10" in text


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ("segment == 0", "no trace has every segment rated in both sets"),
        ("trace_id in ('t0', 't2')", "on the 2 traces rated whole in both: P⁻ can't be estimated"),
        ("trace_id == 'nobody'", "no trace has every segment rated in both sets"),
    ],
)
def test_what_can_not_be_compared_is_said(compared, random_set, tmp_path, keep, says):
    a = random_set("a", 1)
    found = compared(a, AnnotationSet("rater", a.rows.query(keep)))
    assert found.matrices.empty and found.weights.empty
    assert says in found.skipped.iloc[0]["reason"]
    write_comparison(tmp_path, found, notes={}, rules=NO_RULES)
    assert says in (tmp_path / "agreement.md").read_text()
    assert (tmp_path / "kappas.png").stat().st_size > 0


def test_labels_of_another_label_set_are_refused(compared):
    sets = [set_of("a", {("t0", 0): ["ask"]}), set_of("b", {("t0", 0): ["sing"]})]
    with pytest.raises(DataError, match=r"'b' has 1 label\(s\) outside the label set, such as 'sing'"):
        compared(*sets)


def test_files_and_tables_hold_what_was_found(compared, random_set, tmp_path):
    sets = [random_set("run A", 1), random_set("run B", 2, 0.3), random_set("a|b", 3, 0.8)]
    found = compared(*sets)
    rules = pd.DataFrame([{"panel": "run", "rule": "agree", "segments": 24, "share": 1.0}])
    write_comparison(tmp_path, found, notes={"rater": "3 not rated"}, rules=rules)
    loaded = json.loads((tmp_path / "agreement.json").read_text())
    assert set(loaded) == {*found._fields, "rules", "notes"}
    assert pd.DataFrame(loaded["pairs"])["kappa"].to_numpy(float) == pytest.approx(found.pairs["kappa"])
    text = (tmp_path / "agreement.md").read_text()
    assert "run A · run B" in text and "a\\|b" in text and "- rater: 3 not rated" in text and "| run | agree |" in text
    assert len(agreement_summary(loaded).rows) == 3
    assert len(pd.read_csv(tmp_path / "per_label.csv")) == len(found.per_label)
    for name in ("kappas", "label_kappas"):
        shown = [node.text for node in ElementTree.parse(tmp_path / f"{name}.svg").iter() if node.tag.endswith("text")]
        assert any("run A" in str(text) for text in shown)
        assert (tmp_path / f"{name}.png").stat().st_size < 140_000


def test_one_set_alone_is_described_and_not_compared(compared, random_set, tmp_path):
    found = compared(random_set("a", 1))
    assert len(found.sets) == 1 and found.pairs.empty
    write_comparison(tmp_path, found, notes={}, rules=NO_RULES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agreement.json", "agreement.md", "per_label.csv"]


def test_the_runs_own_pairs_are_emphasised_first():
    sets = ["run A", "run B", "run pipeline", "other A", "other pipeline", "rater"]
    pairs = pd.DataFrame([(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]], columns=["a", "b"])
    assert telling_pairs(pairs)[:3] == [
        ("run A", "run B"),
        ("run pipeline", "other pipeline"),
        ("run pipeline", "rater"),
    ]

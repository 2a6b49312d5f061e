"""Lists of the workbench against the same question asked of the tables by pandas."""

import itertools
import json

import numpy as np
import pytest

from mralign_core.evaluation.metrics import answer_metrics
from mralign_core.method.taxonomy import PAPER_TAXONOMY

LENGTHS = ("after", "segments", "tokens")


@pytest.fixture(scope="module")
def candidates(table):
    return table("candidates", "candidates.parquet")


@pytest.fixture(scope="module")
def annotations(table):
    return table("annotations", "annotations.parquet")


@pytest.fixture(scope="module")
def weights(table):
    return table("weights", "weights.parquet")


def ids(rows):
    return [row["trace_id"] for row in rows]


def test_all_traces_stand_in_the_order_of_the_file(found, candidates):
    rows = found("traces")
    assert ids(rows) == candidates["trace_id"].tolist()
    assert rows[7]["question"] == candidates["question"][7] and rows[7]["num_segments"] == 4
    assert [row["reasoning_tokens"] for row in rows] == candidates["reasoning_tokens"].tolist()


@pytest.mark.parametrize("text", ["code000007", "CODE000007", "Code000007. ", "code00", "%", "code______", "'", "\\"])
def test_text_is_found_as_it_stands_letters_case_aside(found, candidates, text):
    has = (candidates["question"] + "\n" + candidates["completion"]).str.lower().str.contains(text.lower(), regex=False)
    assert ids(found("traces", text=text)) == candidates["trace_id"][has].tolist()


def test_polarity_set_stratum_and_question(found, candidates, table):
    questions = table("questions", "questions.parquet").set_index("question_id")
    source = candidates["question_id"].map(questions["source"])
    wanted = (candidates["polarity"] == "negative") & (source == "other") & (candidates["stratum"] == "two_hop")
    assert 0 < wanted.sum() < len(candidates)
    asked = {"polarity": "negative", "source": "other", "stratum": "two_hop"}
    assert ids(found("traces", **asked)) == candidates["trace_id"][wanted].tolist()
    assert ids(found("traces", question="train-000003")) == ["trace-000006", "trace-000007"]


def test_conditions_on_a_segment_are_met_by_one_segment(found, annotations, weights):
    rows = annotations.merge(weights, on=["trace_id", "segment"])
    has = rows["labels"].map(lambda labels: "analogy" in labels) & (rows["rule"] == "agree") & (rows["weight"] >= 1)
    apart = {
        "label": set(rows["trace_id"][rows["labels"].map(lambda labels: "analogy" in labels)]),
        "weight": set(rows["trace_id"][rows["weight"] >= 1]),
    }
    wanted = set(rows["trace_id"][has])
    assert wanted and wanted != apart["label"] & apart["weight"]
    assert set(ids(found("traces", label="analogy", rule="agree", weight_min=1))) == wanted
    low = set(rows["trace_id"][rows["weight"] < 0.5])
    assert set(ids(found("traces", weight_max=0.5))) == low


def test_disputes_are_of_any_label_or_of_one(found, annotations):
    differ = annotations["labels_a"].map(set) != annotations["labels_b"].map(set)
    assert set(ids(found("traces", disputed="any"))) == set(annotations["trace_id"][differ])
    by_one = annotations["labels_a"].map(lambda labels: "chaining" in labels) != annotations["labels_b"].map(
        lambda labels: "chaining" in labels
    )
    assert set(ids(found("traces", disputed="chaining"))) == set(annotations["trace_id"][by_one]) != set()


def chains(annotations):
    """Trace → its states, from <start> to <stop>."""
    rows = annotations[annotations["labels"].map(len) > 0].drop_duplicates(["trace_id", "step"])
    return {
        trace_id: ["<start>", *(labels[0] for labels in rows["labels"]), "<stop>"]
        for trace_id, rows in rows.groupby("trace_id")
    }


def test_labels_in_a_row_are_found_next_to_each_other_or_with_a_gap(found, annotations):
    steps = chains(annotations)
    seen = 0
    for a, b in itertools.product(PAPER_TAXONOMY.state_names[:6], PAPER_TAXONOMY.state_names[-4:]):
        next_to = {name for name, chain in steps.items() if (a, b) in list(itertools.pairwise(chain))}
        apart = {name for name, chain in steps.items() if a in chain and b in chain[chain.index(a) + 1 :]}
        one_between = {name for name, chain in steps.items() if (a, b) in list(zip(chain, chain[2:], strict=False))}
        assert set(ids(found("traces", pattern=f"{a} → {b}"))) == next_to
        assert set(ids(found("traces", pattern=f"{a} → … → {b}"))) == apart
        assert set(ids(found("traces", pattern=f"{a}->*->{b}"))) == one_between
        seen += bool(next_to) + bool(one_between) + (apart > next_to)
    assert seen > 20


def test_order_by_weight_by_disagreement_and_by_length(found, annotations, weights):
    largest = weights.groupby("trace_id")["weight"].max().astype(float)
    assert [largest[name] for name in ids(found("traces", sort="weight"))] == sorted(largest, reverse=True)
    clipped = weights.assign(ratio=weights["ratio"].astype(float).fillna(np.inf)).sort_values(
        ["weight", "ratio"], ascending=False
    )
    first = clipped.drop_duplicates("trace_id")
    ranks = {row.trace_id: (-row.weight, -row.ratio) for row in first.itertuples()}
    rows = found("traces", sort="weight")
    assert [ranks[name] for name in ids(rows)] == sorted(ranks.values()), "of equal weights the ratio decides"
    own = weights[weights["trace_id"] == rows[0]["trace_id"]].sort_values("segment")
    assert rows[0]["clipped"] == own["clipped"].tolist() and len(rows[0]["ratios"]) == len(own)
    smallest = weights.groupby("trace_id")["weight"].min().astype(float)
    assert [smallest[name] for name in ids(found("traces", sort="weight_low"))] == sorted(smallest)
    differ = (annotations["labels_a"].map(set) != annotations["labels_b"].map(set)).astype(float)
    disagreement = differ.groupby(annotations["trace_id"]).mean()
    assert [disagreement[name] for name in ids(found("traces", sort="disagreement"))] == sorted(
        disagreement, reverse=True
    )


@pytest.fixture(scope="module")
def policy(table):
    return table("policy-logps:mr_align", "policy.parquet")


def moved(segment):
    return (segment["policy_logp"] - segment["reference_logp"]) / segment["num_tokens"]


def test_what_training_moved_is_of_the_same_segment_as_all_else(found, policy, annotations):
    labels = {(row.trace_id, row.segment): row.labels for row in annotations.itertuples()}
    segments = [
        (row.trace_id, place, moved(segment))
        for row in policy.itertuples()
        for place, segment in enumerate(row.segments)
    ]
    up = {name for name, _, by in segments if by >= 0.1}
    assert set(ids(found("traces", moved_min=0.1))) == up and 0 < len(up) < len(policy)
    assert set(ids(found("traces", moved_max=-0.1))) == {name for name, _, by in segments if by <= -0.1}
    wanted = {name for name, place, by in segments if by >= 0.1 and "analogy" in labels[name, place]}
    assert set(ids(found("traces", moved_min=0.1, label="analogy"))) == wanted
    assert 0 < len(wanted) < len(up & set(ids(found("traces", label="analogy"))))


def test_order_by_implicit_reward_and_by_kl(found, get, policy):
    rewards = policy.set_index("trace_id")["implicit_reward"].astype(float)
    for sort, order in (("raised", sorted(rewards, reverse=True)), ("lowered", sorted(rewards))):
        rows = found("traces", sort=sort, trained="mr_align")
        assert [rewards[name] for name in ids(rows)] == order == [row["implicit_reward"] for row in rows]
    kl = (policy["kl"] / policy["num_tokens"]).astype(float).set_axis(policy["trace_id"])
    assert [kl[name] for name in ids(found("traces", sort="kl"))] == sorted(kl, reverse=True)
    refused = get("traces", sort="kl", trained="kto")
    assert refused.status_code == 400 and "no traces were looked at after training it" in refused.json()["problem"]


def test_draws_by_mode_and_by_where_the_gold_answer_is(found, table):
    draws = table("generations", "generations.parquet")
    wanted = (draws["thinking_mode"] == "on") & draws["em_thought"].map(bool) & ~draws["em_answer"].map(bool)
    rows = found("draws", mode="on", hit="thinking")
    assert [(row["question_id"], row["draw"]) for row in rows] == list(
        zip(draws["question_id"][wanted], draws["draw"][wanted], strict=True)
    )
    assert {row["thinking_mode"] for row in found("draws", mode="off")} == {"off"}
    assert [row["question_id"] for row in found("draws", text="code000007")] == ["train-000003"]


def test_flips_are_those_of_the_evaluation(found, table):
    flips = table("results", "flips.parquet")
    for (variant, against, flip), rows in flips.groupby(["variant", "baseline", "flip"]):
        found_rows = found("answers", variant=variant, against=against, flip=flip)
        assert sorted(row["question_id"] for row in found_rows) == sorted(rows["question_id"]) != []
    better, worse, both, neither = (
        len(found("answers", variant="kto", against="on", flip=flip))
        for flip in ("wrong to right", "right to wrong", "both right", "both wrong")
    )
    assert better + worse + both + neither == len(found("answers", variant="kto"))
    assert len(found("answers", variant="kto", against="on", flip="any")) == better + worse


def test_right_in_thinking_and_wrong_in_answer(found, table):
    marks = answer_metrics(table("scores:mr_align", "scores.parquet"))
    rows = found("answers", variant="mr_align", hit="thinking")
    assert [row["question_id"] for row in rows] == marks["question_id"][
        (marks["mis"] == 1) & (marks["em_answer"] == 0)
    ].tolist()
    assert rows[0]["answers_by_variant"]["mr_align"]["em_answer"] is False


def test_between_an_answer_and_no_thinking_there_is_no_gap(found):
    assert found("answers", variant="off", hit="right") and not found("answers", variant="off", hit="gap")


@pytest.mark.parametrize("name", [".", "..", "../runs", "a/b"])
def test_a_run_of_no_possible_name_is_not_found(get, name):
    reply = get("traces", run=name)
    assert reply.status_code == 404 and "is called" in reply.json()["problem"]


def test_what_no_list_has_is_an_error_that_says_what_there_is(get):
    for asked, problem in (
        ({"bogus": "1"}, "no filter 'bogus'; remove it"),
        ({"weight_from": "1"}, "no filter 'weight_from'; is it weight_min"),
        ({"pattern": "retrieval → foo"}, "'foo' is no label; there are framing"),
        ({"pattern": "framing+chaining+analogy"}, "more than the 2 labels"),
        ({"weight_min": "much"}, "weight_min='much'"),
        ({"label": "foo"}, "'foo' is no label"),
        ({"page": "0"}, "page='0'"),
        *(({f"{name}_{end}": str(2**127)}, f"{name}_{end}=") for name in LENGTHS for end in ("from", "to")),
    ):
        reply = get("traces", **asked)
        assert reply.status_code == 400 and problem in reply.json()["problem"]
    assert "against=VARIANT" in get("answers", flip="any").json()["problem"]
    assert "there are off, on, kto, mr_align" in get("answers", variant="sft").json()["problem"]


def test_a_list_is_saved_whole_as_json_lines(get, found):
    for name, asked in (("traces", {"polarity": "negative"}), ("draws", {}), ("answers", {"against": "on"})):
        reply = get(f"{name}.jsonl", **asked)
        lines = [json.loads(line) for line in reply.text.splitlines()]
        thinkings = {row["trace_id"]: row.pop("thinking") for row in lines if name == "traces"}
        for each in lines:
            for saved in [each] if name == "traces" else each.get("answers_by_variant", {}).values():
                saved.pop("mentions")
        assert lines == found(name, **asked)
        for trace_id in list(thinkings)[:3]:
            segments = get("trace", id=trace_id).json()["segments"]
            assert thinkings[trace_id] == ["".join(text for text, _ in each["text"]) for each in segments]
    assert get("traces.jsonl", text="nowhere").text == ""
    assert get("traces.jsonl", bogus="1").status_code == 400

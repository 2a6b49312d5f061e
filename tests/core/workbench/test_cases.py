"""One trace, one question, and the numbers of a run, over HTTP."""

import dataclasses
import doctest
from collections import Counter

import pandas as pd
import pytest

from mralign_core.errors import ArtifactError
from mralign_core.reporting.server_paths import VIEW_PREFIX
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage import key_of
from mralign_core.storage.tables import write_table
from mralign_core.workbench import database, filters
from mralign_core.workbench.app import PAGE_POLICY
from mralign_core.workbench.cases import read_trace
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.overview import most_disputed
from mralign_core.workbench.tables import find_run
from tests.simulated_run import RUN


@pytest.mark.parametrize("module", [database, filters])
def test_docstring_examples_hold(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_a_trace_is_shown_with_all_that_the_tables_have_of_it(get, store, run):
    trace = get("trace", id="trace-000007").json()
    row = store.read_table(run.artifacts["candidates"], "candidates.parquet").iloc[7]
    labels = store.read_table(run.artifacts["annotations"], "annotations.parquet")
    weights = store.read_table(run.artifacts["weights"], "weights.parquet")
    after = store.read_table(run.artifacts["policy-logps:mr_align"], "policy.parquet").iloc[7]
    logps = store.read_table(
        run.artifacts["adapter:mr_align"].model_copy(update=parent_of(store, run)), "reference.parquet"
    )
    assert trace["question"] == row["question"] and trace["others"][0]["thinking_mode"] == "on"
    for place, segment in enumerate(trace["segments"]):
        span = row["segments"][place]
        assert "".join(text for text, _ in segment["text"]) == row["completion"][span["start"] : span["end"]]
        own = labels[(labels["trace_id"] == "trace-000007") & (labels["segment"] == place)].iloc[0]
        assert (segment["labels"], segment["rule"], segment["labels_b"]) == (
            own["labels"],
            own["rule"],
            own["labels_b"],
        )
        assert segment["disputed"] == (set(own["labels_a"]) != set(own["labels_b"]))
        weighed = weights[(weights["trace_id"] == "trace-000007") & (weights["segment"] == place)].iloc[0]
        assert segment["weight"] == weighed["weight"] and segment["weight_low"] == weighed["weight_low"]
        tokens = logps["logps"][7][span["token_start"] : span["token_end"]]
        assert segment["logps"] == tokens and segment["logp"] == pytest.approx(sum(tokens))
        moved = segment["trained"]["mr_align"]
        assert moved["reference_logp"] == pytest.approx(sum(tokens)) and moved["policy_logp"] == pytest.approx(
            sum(after["logps"][span["token_start"] : span["token_end"]]), abs=1e-4
        )
    assert trace["trained"]["mr_align"]["implicit_reward"] == after["implicit_reward"]
    assert any(is_gold for _, is_gold in trace["segments"][-1]["text"])
    assert [reply["role"] for reply in trace["replies"]] == ["annotator_a", "annotator_b"]
    assert trace["reference"]["partner"] == "trace-000008"


def cut_short(table):
    """Of one trace a segment fewer."""
    cut = table["segments"].map(list)
    cut[7] = cut[7][:-1]
    return table.assign(segments=cut)


def one_too_many(table):
    """Of one trace a segment more."""
    last = table[table["trace_id"] == "trace-000007"].tail(1)
    return pd.concat([table, last.assign(segment=4)], ignore_index=True)


@pytest.mark.parametrize(
    ("name", "file", "schema", "damage", "told"),
    [
        ("policy-logps:mr_align", "policy.parquet", POLICY_LOGPS, cut_short, "tells of 3 segments"),
        ("weights", "weights.parquet", SEGMENT_WEIGHTS, one_too_many, "tells of segment 4"),
    ],
)
def test_a_table_that_does_not_fit_its_traces_is_told_of(run, store, tmp_path, name, file, schema, damage, told):
    write_table(tmp_path, file, damage(store.read_table(run.artifacts[name], file)), schema)
    stage = name.partition(":")[0]
    made = store.publish(stage, key_of(damaged=name), tmp_path, parents=[], fingerprint={}, table=schema.name)
    tables = dataclasses.replace(run, artifacts={**run.artifacts, name: made}, _opened={})
    assert read_trace(shared_database(), tables, "trace-000008")["segments"]
    with pytest.raises(ArtifactError, match=rf"{name} .*{told} of trace 'trace-000007', which has 4"):
        read_trace(shared_database(), tables, "trace-000007")


def parent_of(store, run):
    (ref,) = (
        each for each in store.manifest(run.artifacts["adapter:mr_align"]).parents if each.stage == "reference-logps"
    )
    return ref.model_dump()


def test_from_a_report_the_traces_after_training_are_those_of_the_run_with_the_same_adapter(store, run):
    beside = find_run(store, f"adapter/{run.artifacts['adapter:mr_align'].key}")
    assert beside.artifacts["policy-logps:mr_align"] == run.artifacts["policy-logps:mr_align"]


def test_a_question_has_the_answers_of_all_variants_side_by_side(get):
    question = get("question", id="eval-000003").json()
    assert list(question["answers_by_variant"]) == ["off", "on", "kto", "mr_align"]
    assert question["answers_by_variant"]["off"][0]["segments"] == []
    aligned = get("question", id="train-000003").json()
    assert not aligned["answers_by_variant"] and len(aligned["draws"]) == 4
    assert [trace["trace_id"] for trace in aligned["traces"]] == ["trace-000006", "trace-000007"]


def test_the_numbers_of_a_run_lead_to_as_many_cases(get, found):
    summary = get("summary").json()
    for row in summary["answers"]:
        for hit in ("both", "thinking", "answer", "neither"):
            assert len(found("answers", variant=row["variant"], hit=hit)) == row[hit]
    for row in summary["flips"]:
        asked = {"variant": row["variant"], "against": row["baseline"]}
        assert len(found("answers", **asked, flip="wrong to right")) == row["better"]
    judged = get("judged-flips").json()
    assert len(judged) == 3
    for row in judged:
        asked = {"variant": row["variant"], "against": row["baseline"]}
        assert len(found("answers", **asked, judged_flip="right to wrong")) == row["worse"] > 0
    traces = found("traces")
    said = Counter(label for row in traces for labels in row["labels"] for label in labels)
    assert {row["label"]: row["segments"] for row in summary["labels"] if row["segments"]} == said
    assert sum(row["segments"] for row in summary["rules"]) == sum(row["num_segments"] for row in traces)
    polarities = Counter((row["stratum"], row["polarity"]) for row in traces)
    stratum = traces[0]["stratum"]
    told = [f"{polarities[stratum, polarity]} {polarity}" for polarity in ("positive", "negative")]
    assert f"{stratum}: {', '.join(told)}" in summary["composition"]
    one_only = {row["label"]: row["by_one"] for row in summary["labels"]}
    assert list(one_only.values()) == sorted(one_only.values(), reverse=True)
    for row in summary["labels"]:
        assert (row["only_a"] + row["only_b"], row["by_one"] + row["both"]) == (row["by_one"], row["by_any"])
    assert summary["most_disputed"]["segments"]["by_one"] == max(one_only.values()) > 0


def test_of_few_segments_no_label_is_the_most_disputed():
    rows = [("retrieval", 177, 378), ("case_analysis", 10, 10), ("self_verification", 40, 41), ("framing", 0, 90)]
    labels = [{"label": label, "by_one": one, "by_any": either} for label, one, either in rows]
    found = most_disputed(labels)
    assert (found["segments"]["label"], found["share"]["label"]) == ("retrieval", "self_verification")
    assert most_disputed(labels[3:])["segments"] is None is most_disputed(labels[1:2])["share"]


def test_a_move_of_the_heat_map_leads_to_its_traces(get, found):
    moves = get("moves").json()
    assert {move["source"] for move in moves} >= {"<start>"} and {move["target"] for move in moves} >= {"<stop>"}
    for move in moves[::7]:
        rows = found("traces", polarity=move["polarity"], pattern=f"{move['source']} → {move['target']}")
        assert len(rows) == move["traces"] > 0


def test_a_move_of_held_out_thinkings_leads_to_them_and_a_question_has_their_labels(get, found, table):
    moves = get("held-out-moves").json()
    assert {move["variant"] for move in moves} == {each["name"] for each in get("run").json()["labelled"]} > {"on"}
    for move in moves[::7]:
        rows = found("answers", variant=move["variant"], pattern=f"{move['source']} → {move['target']}")
        assert len(rows) == move["traces"] > 0
    labels = table("held-out-annotations", "annotations.parquet")
    own = labels[labels["trace_id"] == "mr_align/eval-000003/0"].sort_values("segment")["labels"].tolist()
    answers = get("question", id="eval-000003").json()["answers_by_variant"]
    assert answers["mr_align"][0]["labels"] == own and len(own) == len(answers["mr_align"][0]["segments"])
    assert "labels" not in answers["kto"][0]


def test_a_move_has_the_mean_weight_of_the_steps_that_it_leads_to(get, store, run):
    weights = store.read_table(run.artifacts["weights"], "weights.parquet")
    labels = store.read_table(run.artifacts["annotations"], "annotations.parquet")
    rows = labels.merge(weights, on=["trace_id", "segment"])
    first = rows[rows["segment"] == 0]
    trace_ids = {row["trace_id"] for row in get("traces", polarity="positive").json()["rows"]}
    for move in get("moves").json():
        if move["target"] == "<stop>":
            assert move["weight"] is None
        elif move["source"] == "<start>" and move["polarity"] == "positive":
            own = [r.weight for r in first.itertuples() if move["target"] in r.labels and r.trace_id in trace_ids]
            assert move["weight"] == pytest.approx(sum(own) / len(own), rel=1e-6) and move["moves"] == len(own)


def test_a_run_is_named_by_its_config_its_id_or_what_was_made_from_it(get, run):
    total = get("traces").json()["total"]
    results = run.artifacts["results"]
    for name in ("", RUN, RUN[:8], f"weights/{run.artifacts['weights'].key}"):
        assert get("traces", run=name).json()["total"] == total
    assert get("answers", run=f"results/{results.key}").json()["total"] == get("answers").json()["total"]
    assert "has no 'generations'" in get("draws", run=f"weights/{run.artifacts['weights'].key}").json()["problem"]
    missing = get("traces", run="nothing-like-it")
    assert missing.status_code == 404 and "no config or run" in missing.json()["problem"]


def test_a_store_that_an_address_may_not_name_is_refused(get, tmp_path):
    elsewhere = get("traces", store="s3://bucket/x", endpoint="http://s3.invalid:9")
    assert elsewhere.status_code == 404 and "AWS_ENDPOINT_URL_S3" in elsewhere.json()["problem"]
    assert get("traces", store=str(tmp_path / "nothing")).status_code == 404
    assert get("traces", store="ftp://host/x").status_code == 404


def test_pages_are_the_same_for_everybody_and_hold_no_data(get):
    for path in ("", "traces", "trace", "no-such-view"):
        page = get(f"{VIEW_PREFIX}{path}", id="trace-000007")
        assert page.status_code == 200 and page.headers["content-security-policy"] == PAGE_POLICY
        assert "code0" not in page.text and "unsafe" not in PAGE_POLICY
    script = get(f"{VIEW_PREFIX}static/workbench.js")
    assert script.headers["content-type"].startswith("text/javascript") and "innerHTML" not in script.text
    assert get(f"{VIEW_PREFIX}static/%2e%2e/app.py").status_code == 404

"""Filters of the report's analyses against what the report's functions say of whole tables."""

import dataclasses
import html
import json
import math
import re
import tempfile
import unicodedata
from types import SimpleNamespace
from urllib.parse import parse_qs

import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.random import default_rng

from mralign_core.estimation.thinking_change import thinking_change, two_models
from mralign_core.evaluation.mentions import answer_mentions, labelled_tails, labels_in, trace_paths
from mralign_core.evaluation.thinking_habits import answer_habits, find_cycle
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting.change_findings import change_block
from mralign_core.reporting.figures import weight_histogram
from mralign_core.reporting.parting import parting_blocks
from mralign_core.reporting.parting_figures import FEWEST_SHOWN, NUM_BINS, in_tenths, mention_places, thinking_lengths
from mralign_core.reporting.report_block import LinkedTable
from mralign_core.reporting.style import to_svg
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.flips import FLIPS
from mralign_core.schemas.scores import SCORES
from mralign_core.storage import key_of
from mralign_core.storage.tables import write_table
from mralign_core.workbench import analyses
from mralign_core.workbench.database import shared_database
from mralign_core.workbench.filters import AnswerFilter
from mralign_core.workbench.interruption import Asker, AskerLeftError, asked_by
from mralign_core.workbench.kept_tables import KeptTables
from mralign_core.workbench.lists import LISTINGS, read_page
from tests.simulated_run import VARIANTS


@pytest.fixture(scope="module")
def mentions(table):
    scores = pd.concat([table(f"scores:{name}", "scores.parquet") for name in VARIANTS], ignore_index=True)
    questions = table("evaluation-questions", "questions.parquet")
    return answer_mentions(scores, dict(zip(questions["question_id"], questions["answers"], strict=True)))


@pytest.fixture(scope="module")
def tails(table):
    traces = table("candidates", "candidates.parquet")
    return labelled_tails(traces, table("annotations", "annotations.parquet"), traces["polarity"] == "positive")


def trace_ids(rows):
    return {row["trace_id"] for row in rows}


def cells(rows):
    return {(row["question_id"], row["draw"]) for row in rows}


def of(frame):
    return set(zip(frame["question_id"], frame["draw"], strict=True))


def test_endings_and_tenths_of_a_bar_are_as_many_answers_as_it_stands_for(found, mentions):
    on = mentions[mentions["variant"] == "on"]
    assert set(on["ending"]) == {"named_right", "named_wrong", "unnamed_right", "unnamed_wrong"}
    for ending in on["ending"].unique():
        rows = on[on["ending"] == ending]
        assert cells(found("answers", variant="on", ending=ending)) == of(rows)
        if not ending.startswith("named"):
            continue
        for name in ("first", "last"):
            shares = in_tenths(rows[name].to_numpy(float))
            for tenth in range(NUM_BINS):
                bounds = {f"{name}_from": 100 * tenth / NUM_BINS, f"{name}_to": 100 * (tenth + 1) / NUM_BINS}
                number = len(found("answers", variant="on", ending=ending, **bounds))
                assert number == pytest.approx(shares[tenth] * len(rows))
    everywhere = found("answers", variant="on", last_to=100)
    assert cells(everywhere) == of(on[on["last"].notna()]) and 0 < len(everywhere) < len(on)


def test_what_follows_the_last_mention_and_how_long_it_is(found, mentions):
    on = mentions[mentions["variant"] == "on"]
    behind = on[on["segments_after"] >= 1]
    assert cells(found("answers", variant="on", after_from=1)) == of(behind) != set()
    assert cells(found("answers", variant="on", after_to=0)) == of(on[on["segments_after"] == 0])


def test_labels_behind_the_last_mention_of_traces(found, tails):
    for label in labels_in([step for path in tails["after"] for step in path]):
        wanted = tails[tails["after"].map(lambda path: label in labels_in(path))]
        assert trace_ids(found("traces", behind=label)) == set(wanted["trace_id"])
        first = tails[tails["after"].map(lambda path: path[:1] == (label,))]
        assert trace_ids(found("traces", behind=f"<start> → {label}")) == set(first["trace_id"])
    at_once = tails[tails["after"].map(len) == 0]
    assert trace_ids(found("traces", behind="<start> → <stop>")) == set(at_once["trace_id"])
    assert 0 < len(at_once) < len(tails)
    lost = tails[(tails["ending"] == "named_wrong") & (tails["last"] < 0.6)]
    assert trace_ids(found("traces", ending="named_wrong", last_to=60)) == set(lost["trace_id"]) != set()


def test_a_trace_without_labels_has_its_ending_and_places(run, store, table, tmp_path):
    of_all = rows_of(analyses.trace_thinking(run, "candidates"))
    named = next(name for name, row in of_all.items() if row["ending"] == "named_right" and row["segments_after"])
    labels = table("annotations", "annotations.parquet")
    write_table(tmp_path, "annotations.parquet", labels[labels["trace_id"] != named], ANNOTATIONS)
    fewer = store.publish("annotations", key_of(but=named), tmp_path, parents=[], fingerprint={}, table="annotations")
    tables = dataclasses.replace(run, artifacts={**run.artifacts, "annotations": fewer}, _opened={})
    of_fewer = rows_of(analyses.trace_thinking(tables, "candidates"))
    assert of_fewer[named] == of_all[named] | {"behind": None, "loops": None} != of_all[named]
    assert {**of_fewer, named: None} == {**of_all, named: None}
    unlabelled = dataclasses.replace(run, artifacts={"candidates": run.artifacts["candidates"]}, _opened={})
    without = {"behind": None, "loops": None}
    assert rows_of(analyses.trace_thinking(unlabelled, "candidates")) == {
        name: row | without for name, row in of_all.items()
    }


def test_saved_lists_have_the_mentions(get, tails, mentions):
    saved = {row["trace_id"]: row["mentions"] for row in saved_lines(get, "traces")}
    named = {name: row for name, row in saved.items() if row["ending"].startswith("named")}
    assert set(named) == set(tails["trace_id"]) and set(saved) > set(named)
    for row in tails.to_dict("records"):
        own = named[row["trace_id"]]
        assert {name: own[name] for name in ("ending", "first", "last", "segments_after")} == {
            name: row[name] for name in ("ending", "first", "last", "segments_after")
        }
        assert [" + ".join(step) for step in own["behind"]] == list(row["after"])
    answers = saved_lines(get, "answers", variant="mr_align", against="kto")
    for variant in ("mr_align", "kto"):
        own = mentions[mentions["variant"] == variant].set_index("question_id")["last"]
        for row in answers:
            place = own[row["question_id"]]
            assert row["answers_by_variant"][variant]["mentions"]["last"] == (place if place == place else None)
    assert {row["answers_by_variant"]["off"]["mentions"] for row in saved_lines(get, "answers", variant="off")} == {
        None
    }


def saved_lines(get, name, **asked):
    return [json.loads(line) for line in get(f"{name}.jsonl", **asked).text.splitlines()]


@pytest.mark.parametrize(
    ("sort", "column", "sign"), [("first", "first", 1), ("last", "last", 1), ("after", "segments_after", -1)]
)
def test_lists_are_sorted_by_mentions_either_way_round(found, get, tails, mentions, sort, column, sign):
    places = {**tails.set_index("trace_id")[column]}
    on = mentions[(mentions["variant"] == "on")].set_index("question_id")[column]
    assert len({*places.values()}) > 1
    for reverse, turned in (("", sign), ("yes", -sign)):
        rows = found("traces", sort=sort, reverse=reverse)
        listed = [row["trace_id"] for row in rows]
        assert {row["trace_id"]: row["mentions"][column] for row in rows if row["trace_id"] in places} == places
        named = [places[name] for name in listed if name in places]
        assert named == sorted(named, key=lambda place: turned * place) and not set(listed[len(named) :]) & set(places)
        answered = [on[row["question_id"]] for row in found("answers", variant="on", sort=sort, reverse=reverse)]
        known = [place for place in answered if place == place]
        assert known == sorted(known, key=lambda place: turned * place) == answered[: len(known)] != answered
    assert "name one with sort=" in get("traces", reverse="yes").json()["problem"]


def rows_of(file):
    return {row["trace_id"]: row for row in pq.read_table(file).to_pylist()}


def test_labels_of_held_out_thinkings_tell_of_their_answers(found, get, table):
    traces = table("held-out-traces", "candidates.parquet")
    labels = table("held-out-annotations", "annotations.parquet")
    paths = trace_paths(labels)
    tails = labelled_tails(traces, labels, traces["is_right"]).set_index("trace_id")["after"]
    for variant in ("on", "mr_align"):
        own = traces[traces["variant"] == variant]
        loops = own["trace_id"].map(lambda name: bool(find_cycle(paths[name])))
        assert cells(found("answers", variant=variant, loops="yes")) == of(own[loops])
        assert cells(found("answers", variant=variant, loops="no")) == of(own[~loops])
        label = labels["labels"].iat[0][0]
        has = own["trace_id"].map(lambda name: name in tails.index and label in labels_in(tails[name]))
        assert cells(found("answers", variant=variant, behind=label)) == of(own[has]) != set()
    refused = get("answers", behind="cake")
    assert refused.status_code == 400 and "'cake' is no label" in refused.json()["problem"]


@pytest.fixture(scope="module")
def uneven(store, run, table, tmp_path_factory):
    """Think-on's answers of different lengths, some of whose thinkings repeat themselves, and the run with these."""
    folder, scores = tmp_path_factory.mktemp("uneven"), table("scores:on", "scores.parquet")
    for place, thinking in enumerate(scores["thinking"]):
        segments = thinking.split("\n\n")[: 1 + place % 4]
        scores.loc[place, "thinking"] = "\n\n".join(segments + segments[:1] * (place % 3 == 0))
    write_table(folder, "scores.parquet", scores.assign(num_tokens=range(20, 20 + len(scores))), SCORES)
    made = store.publish(
        "scores", key_of(uneven=True), folder, parents=[], fingerprint={"variant": "on"}, table=SCORES.name
    )
    tables = dataclasses.replace(run, artifacts={**run.artifacts, "scores:on": made}, _opened={})
    return tables, answer_habits(store.read_table(made, "scores.parquet"))


def listed(tables, **asked):
    page = read_page(shared_database(), tables, LISTINGS["answers"], AnswerFilter(variant="on", **asked))
    assert page.num_pages <= 1
    return cells(page.rows)


def test_thinkings_that_repeat_themselves(uneven):
    tables, habits = uneven
    repeats = habits["repeats"] == 1
    assert listed(tables, repeats="yes") == of(habits[repeats]) != set()
    assert listed(tables, repeats="no") == of(habits[~repeats]) != set()


@pytest.mark.parametrize(("name", "bound"), [("segments", 3), ("tokens", 30)])
def test_lengths_of_thinkings_with_both_bounds(uneven, name, bound):
    tables, habits = uneven
    lengths = habits[f"num_{name}"]
    assert listed(tables, **{f"{name}_from": bound}) == of(habits[lengths >= bound])
    assert listed(tables, **{f"{name}_to": bound}) == of(habits[lengths <= bound])
    assert len({*lengths[lengths < bound]}) > 1 < len({*lengths[lengths > bound]}) and (lengths == bound).any()


def test_flips_of_the_judges_are_not_those_of_the_match(found, get, table):
    grades = {name: table(f"judgements:{name}", "judgements.parquet") for name in ("kto", "mr_align")}
    right = {
        name: frame.set_index(["question_id", "draw"])["grade"].eq("correct").sort_index()
        for name, frame in grades.items()
    }
    before, after = right["kto"], right["mr_align"]
    asked = {"variant": "mr_align", "against": "kto"}
    kinds = {"wrong to right": ~before & after, "right to wrong": before & ~after, "both right": before & after}
    for flip, wanted in (kinds | {"any": before != after}).items():
        assert cells(found("answers", **asked, judged_flip=flip)) == set(wanted.index[wanted]) != set()
    assert cells(found("answers", **asked, judged_flip="any")) != cells(found("answers", **asked, flip="any"))
    wrong = found("answers", variant="kto", verdict="wrong")
    assert cells(wrong) == set(before.index[~before])
    assert {row["answers_by_variant"]["kto"]["judged_right"] for row in wrong} == {False}
    assert get("answers", judged_flip="any").status_code == 400


def test_whoever_leaves_while_verdicts_are_read_is_not_read_on_for(run, monkeypatch, tmp_path):
    asker, read = Asker(), []

    def leaving(file, **options):
        read.append(file)
        asker.leave()
        return pq.read_table(file, **options)

    monkeypatch.setattr(analyses, "_TABLES", KeptTables(tmp_path))
    monkeypatch.setattr(analyses, "pq", SimpleNamespace(read_table=leaving))
    with asked_by(asker), pytest.raises(AskerLeftError):
        analyses.verdicts(run)
    assert len(read) == 1


def test_a_table_is_made_once_and_anew_for_other_rules(run, monkeypatch):
    made = analyses.trace_thinking(run, "candidates")
    with monkeypatch.context() as patch:
        patch.setattr(analyses, "_thinkings", None)
        assert analyses.trace_thinking(run, "candidates") == made
    rules = analyses.DEFAULT_RULES._replace(containment="substring")
    monkeypatch.setattr(analyses, "_rules", lambda _: rules)
    assert analyses.trace_thinking(run, "candidates") != made
    with monkeypatch.context() as patch:
        patch.setattr(unicodedata, "unidata_version", "16.0.0")
        assert analyses.trace_thinking(run, "candidates") != made


def test_verdicts_are_counted_anew_for_other_judges_and_for_other_answers(run, store, table, tmp_path):
    def tables_with(name, schema, fingerprint, frame):
        folder = tmp_path / name
        write_table(folder, f"{name}.parquet", frame, schema)
        made = store.publish(name, key_of(other=name), folder, parents=[], fingerprint=fingerprint, table=schema.name)
        key = f"{name}:kto" if name == "scores" else name
        return dataclasses.replace(run, artifacts={**run.artifacts, key: made}, _opened={})

    scores, flips = table("scores:kto", "scores.parquet"), table("results", "flips.parquet")
    others = [
        run,
        tables_with("results", FLIPS, {"judges": ["openai/judge", "openai/second"]}, flips),
        tables_with("scores", SCORES, {"variant": "kto"}, scores.assign(answer="another")),
    ]
    assert len({analyses.verdicts(each) for each in others}) == len(others)


def test_the_page_is_told_how_far_a_table_is_and_of_no_other_runs(run, get, monkeypatch, tmp_path):
    told, plain = [], analyses._thinkings

    def asking(*args):
        told.append((get("under-way").json(), get("under-way", run=f"results/{run.artifacts['results'].key}").json()))
        yield from plain(*args)

    monkeypatch.setattr(analyses, "_thinkings", asking)
    monkeypatch.setattr(analyses, "_TABLES", KeptTables(tmp_path))
    assert get("traces", loops="no").status_code == 200
    assert told == [([{"rows": 40, "done": 0}], [])] and get("under-way").json() == []


def test_what_is_done_of_a_row_group_is_kept_when_nobody_waits_any_more(run, monkeypatch, tmp_path):
    whole = rows_of(analyses.trace_thinking(run, "candidates"))
    asker, described, plain = Asker(), [], analyses.describe_mentions

    def leaving(text, *more):
        described.append(text)
        if len(described) == 15:
            asker.leave()
        return plain(text, *more)

    monkeypatch.setattr(analyses, "TEXTS_AT_ONCE", 10)
    monkeypatch.setattr(analyses, "_TABLES", KeptTables(tmp_path))
    monkeypatch.setattr(analyses, "describe_mentions", leaving)
    with asked_by(asker), pytest.raises(AskerLeftError):
        analyses.trace_thinking(run, "candidates")
    assert rows_of(analyses.trace_thinking(run, "candidates")) == whole
    assert len(whole) == 40 and len(described) == 15 + 30


def test_votes_that_are_counted_are_told_to_be_no_more_than_the_judges_gave(run, monkeypatch):
    number = pq.read_metadata(analyses.verdicts(run)).num_rows
    monkeypatch.setattr(analyses, "_TABLES", SimpleNamespace(file=lambda key, schema, parts, work: work.rows))
    assert (
        number
        <= analyses.verdicts(run)
        == sum(ref.rows for name, ref in run.artifacts.items() if name.startswith("judgements:"))
    )


def test_a_page_without_room_for_an_analysis_says_so(get, monkeypatch, tmp_path):
    (tmp_path / "tmp").write_text("no folder")
    monkeypatch.setattr(analyses, "_TABLES", KeptTables(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    for path in ("traces", "traces.jsonl"):
        reply = get(path, loops="no")
        assert reply.status_code == 503 and "make room there" in reply.json()["problem"]


def test_a_run_without_judges_says_so(get, run, store):
    weights = run.artifacts["weights"]
    reply = get("traces", run=f"weights/{weights.key}", loops="no")
    assert reply.status_code == 200 and reply.json()["total"] > 0
    results = get("answers", run=f"results/{run.artifacts['results'].key}", verdict="right")
    assert results.status_code == 404 and "has no verdicts of judges" in results.json()["problem"]


def blocks_of(table, *, held_out):
    scores = pd.concat([table(f"scores:{name}", "scores.parquet") for name in VARIANTS], ignore_index=True)
    labelled = [("candidates", "annotations"), ("held-out-traces", "held-out-annotations")]
    own, other = ((table(a, "candidates.parquet"), table(b, "annotations.parquet")) for a, b in labelled)
    questions = table("evaluation-questions", "questions.parquet")
    return parting_blocks(
        scores, questions, *own, other if held_out else None, taxonomy=PAPER_TAXONOMY, confidence=0.95
    )


def count(text):
    return int(text.partition(" ")[0].replace(",", ""))


CASES_OF_A_ROW = {
    "Places are medians": lambda row: count(row[2]),
    "Means by variant and outcome": lambda row: count(row[2]),
    "Answers by what they were": lambda row: count(row[2]),
    "Paths from the last mention": lambda row: count(row[1]) + count(row[2]),
    "The first step behind": lambda row: count(row[1]) + count(row[2]),
    "The strongest differences": lambda row: count(row[6] if row[3].startswith("+") else row[5]),
    "Thinkings that loop": lambda row: round(count(row[2]) * float(row[3]) / 100) if row[3] != "–" else 0,
}
"""How a table's title begins → the cases that a row of it stands for."""


@pytest.mark.parametrize("held_out", [True, False])
def test_a_row_of_the_reports_tables_leads_to_as_many_cases_as_it_says(found, table, held_out):
    seen = set()
    for shown in (shown for block in blocks_of(table, held_out=held_out) for shown in block.tables):
        number = next((counted for title, counted in CASES_OF_A_ROW.items() if shown.title.startswith(title)), None)
        if number is None or not isinstance(shown, LinkedTable):
            continue
        assert len(shown.addresses) == len(shown.rows)
        for row, address in zip(shown.rows, shown.addresses, strict=True):
            if address:
                view, asked = query_of(address)
                assert len(found(view, **asked)) == number(row), (shown.title, row, address)
                seen.add(shown.title.split()[0])
        for (place, column), address in shown.cell_addresses.items():
            view, asked = query_of(address)
            assert len(found(view, **asked)) == count(shown.rows[place][column]), (shown.title, place, column)
            seen.add("a cell")
    assert seen >= {"Places", "Means", "Answers", "Paths", "The"} | ({"Thinkings", "a cell"} if held_out else set())


def test_an_edge_of_delta_leads_to_as_many_thinkings_as_make_the_move(found, table, get):
    traces, labels = (
        table("held-out-traces", "candidates.parquet"),
        table("held-out-annotations", "annotations.parquet"),
    )
    change = thinking_change(
        two_models(traces, labels, "mr_align", "on", PAPER_TAXONOMY), PAPER_TAXONOMY.num_states, rng=default_rng(0)
    )
    making = dict(zip(("mr_align", "on"), change.num_making, strict=True))
    block = change_block(traces, labels, PAPER_TAXONOMY, 0.0, "mr_align")  # at the level 1 all edges are shown
    assert block and block.figure
    addresses = {html.unescape(each) for each in re.findall(r'data-cases="(answers[^"]+)"', to_svg(block.figure, "d"))}
    assert {query_of(each)[1]["variant"] for each in addresses} == {"on", "mr_align"}
    for view, asked in map(query_of, addresses):
        a, b = map(PAPER_TAXONOMY.state_names.index, asked["pattern"].split(" → "))
        rows = found(view, **asked)
        assert len(rows) == making[asked["variant"]][a, b] > making[asked["variant"]].min()
        labelled = rows[0]["answers_by_variant"][asked["variant"]]["labels"]
        assert asked["pattern"] in " → ".join(["<start>", *(" + ".join(each) for each in labelled), "<stop>"])
    assert get("answers", pattern="cake").status_code == 400


@pytest.mark.parametrize("asked", [{"pattern": "<start> → *"}, {"behind": "<stop>"}, {"loops": "no"}])
def test_of_thinkings_without_labels_nothing_is_asked_that_goes_by_labels(get, run, asked):
    (name, value), labelled = asked.popitem(), "of on, mr_align are"
    refused = get("answers", variant="kto", **{name: value})
    assert refused.status_code == 400 and labelled in refused.json()["problem"]
    assert f"{name}={value}: the held-out thinkings of 'kto'" in refused.json()["problem"]
    unlabelled = get("traces", run=f"candidates/{run.artifacts['candidates'].key}", **{name: value})
    assert unlabelled.status_code == 404 and "has no 'annotations'" in unlabelled.json()["problem"]


def test_moves_are_asked_of_labelled_thinkings_only(get):
    refused = get("held-out-moves", variant="kto")
    assert refused.status_code == 400
    assert "of 'kto' are not labelled; those of on, mr_align are" in refused.json()["problem"]
    assert len(get("held-out-moves", variant="on").json()) == len(get("held-out-moves").json()) > 0


def query_of(address):
    view, _, query = address.partition("?")
    return view, {name: values[0] for name, values in parse_qs(query, strict_parsing=True).items()}


def test_a_bar_of_the_reports_figure_leads_to_its_share_of_the_answers(found, mentions):
    named = mentions[(mentions["variant"] == "on") & mentions["last"].notna()]["ending"].value_counts()
    svg = to_svg(mention_places(mentions), "mentions")
    bars = re.findall(r'<title>[^<]*?: (\d+) %[^<]*</title>\s*<a data-cases="(answers[^"]+)"', svg)
    assert len(bars) > 6
    for share, address in bars:
        view, asked = query_of(html.unescape(address))
        assert round(100 * len(found(view, **asked)) / named[asked["ending"]]) == int(share)


def test_a_dot_of_an_outcomes_length_leads_to_its_answers(found, table):
    habits = answer_habits(table("scores:on", "scores.parquet"))
    svg = to_svg(thinking_lengths(habits, ["on"]), "lengths")
    addresses = {html.unescape(each) for each in re.findall(r'data-cases="(answers[^"]+)"', svg)}
    sizes = habits["ending"].value_counts()
    led = {asked["ending"]: len(found(view, **asked)) for view, asked in map(query_of, addresses)}
    assert led == {ending: size for ending, size in sizes.items() if size >= FEWEST_SHOWN} != {}


def test_bars_of_the_weights_lead_to_the_traces_that_they_count(found, table):
    """Each bar but the last leaves out its upper bound; the ends are the clip's, at which many weights stand."""
    weights = table("weights", "weights.parquet")
    weights.loc[:3, "weight"] = 1.0  # a bound between two bars
    traces = table("candidates", "candidates.parquet")
    polarities = dict(zip(traces["trace_id"], traces["polarity"], strict=True))
    svg = to_svg(weight_histogram(weights, polarities, math.exp(-1), math.e), "weights")
    asked = [query_of(html.unescape(each))[1] for each in re.findall(r'data-cases="(traces[^"]+)"', svg)]
    clipped = set(weights["trace_id"][weights["weight"] == math.e])
    ends = [found("traces", **each) for each in asked if each["weight_max"] == repr(math.e)]
    assert len(ends) == 2 and trace_ids([row for rows in ends for row in rows]) >= clipped != set()
    counted = weights["trace_id"].map(polarities).groupby(weights["weight"]).agg(list)
    within = [
        (polarity, weight)
        for each in asked
        for weight, of in counted.items()
        for polarity in of
        if polarity == each["polarity"] and float(each["weight_min"]) <= weight <= float(each["weight_max"])
    ]
    assert sorted(within) == sorted((polarity, weight) for weight, of in counted.items() for polarity in of)

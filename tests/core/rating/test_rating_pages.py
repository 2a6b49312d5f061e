"""Rating over HTTP: blinded, bounded, and with the numbers that a sheet would have given."""

import json

import httpx
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from flows.commands.door import Door
from flows.commands.secret import token_of
from mralign_core.comparison.sheets import read_sheet
from mralign_core.evaluation.judge_sheet import read_judge_sheet
from mralign_core.evaluation.people import judge_agreement
from mralign_core.judging.criteria import answers_to_check, verdicts_to_check
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.rating.choosing import read_answers
from mralign_core.rating.records import RatingRecords
from mralign_core.reporting.server_paths import VIEW_API_PREFIX
from tests.asgi_server import in_a_loop_of_its_own

LABELS = PAPER_TAXONOMY.labels
NOBODY = b'{"rater": "nobody"}'


@pytest.fixture(scope="module")
def labelled(page):
    """A round of labels that two raters went through, one label a segment, and what they said."""
    name = page.begin(num=12, seed=3)
    rng = np.random.default_rng(0)
    first = [LABELS[place] for place in rng.integers(0, 4, 48)]
    second = [label if rng.random() < 0.6 else LABELS[rng.integers(0, 4)] for label in first]
    items = page.rate_all(name, "anna", lambda number, _: {"label_1": first[number]})
    assert page.get("results", round=name, rater="ben").status_code == 404
    page.rate_all(name, "ben", lambda number, _: {"label_1": second[number]})
    return name, items, first, second


def test_raters_see_texts_under_opaque_ids_and_nothing_else(page):
    reply = page.get("round", round=page.begin(num=2), rater="anna").json()
    assert set(reply) == {"name", "kind", "of", "items", "choices", "about", "ratings", "finished"}
    assert all(set(each["cells"]) == {"trace", "segment", "question", "text"} for each in reply["items"])
    told = json.dumps([reply["items"], reply["ratings"]])
    assert "trace-0" not in told and "positive" not in told and not any(f'"{label}"' in told for label in LABELS)
    verdicts = page.get("round", round=page.begin("verdicts", num=2), rater="anna").json()
    assert {name for each in verdicts["items"] for name in each["cells"]} == {"question", "reference_answers", "answer"}
    assert not any(variant in json.dumps(verdicts["items"]) for variant in ("mr_align", "kto", "em_answer"))


def test_kappa_is_scikit_learns(page, labelled, run):
    name, _, first, second = labelled
    found = page.get("results", round=name, rater="anna").json()
    by_pair = {(row["a"], row["b"]): row for row in found["agreement"]}
    raters = by_pair["anna", "ben"]
    assert raters["kappa"] == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert raters["observed"] == pytest.approx(np.mean(np.array(first) == np.array(second)))
    assert raters["low"] < raters["kappa"] < raters["high"] and raters["segments"] == 48
    rows = run.store.read_table(run.artifacts["annotations"], "annotations.parquet").set_index(["trace_id", "segment"])
    of = RatingRecords(run.store).round(name)
    for who, column in (("the pipeline", "labels"), ("annotator A", "labels_a"), ("annotator B", "labels_b")):
        theirs = ["+".join(sorted(rows.loc[(each.about, each.segment), column])) for each in of.items]
        assert by_pair["anna", who]["kappa"] == pytest.approx(cohen_kappa_score(first, theirs), abs=1e-12)
    macro = [[PAPER_TAXONOMY.macro_of(label) for label in labels] for labels in (first, second)]
    if len({*macro[0], *macro[1]}) > 1:
        assert raters["kappa_macro"] == pytest.approx(cohen_kappa_score(*macro), abs=1e-12)


def test_where_a_rater_and_the_pipeline_differ_stands_with_what_each_gave(page, labelled, run):
    name, _, first, _ = labelled
    found = page.get("results", round=name, rater="anna").json()["machines_differ"]
    rows = run.store.read_table(run.artifacts["annotations"], "annotations.parquet").set_index(["trace_id", "segment"])
    expected = []
    for shown, own in zip(RatingRecords(run.store).round(name).items, first, strict=True):
        row = rows.loc[(shown.about, shown.segment)]
        given = {"the pipeline": row["labels"], "annotator A": row["labels_a"], "annotator B": row["labels_b"]}
        machines = {who: list(labels) for who, labels in given.items()}
        if any(labels != [own] for labels in machines.values()):
            expected.append((shown.cells, [own], machines))
    assert [(each["cells"], each["own"], each["machines"]) for each in found] == expected
    assert 10 < len(expected) < 48


def test_where_raters_differ_stands_side_by_side(page, labelled):
    name, items, first, second = labelled
    found = page.get("results", round=name, rater="ben").json()["differences"]
    differing = [item["item"] for item, a, b in zip(items, first, second, strict=True) if a != b]
    assert [each["item"] for each in found] == differing and 5 < len(differing) < 40
    assert set(found[0]["raters"]) == {"anna", "ben"}


def test_nobody_sees_results_before_being_done(page):
    name = page.begin(num=3, seed=8)
    page.rate_all(name, "anna", lambda *_: {"label_1": "retrieval"})
    items = page.get("round", round=name, rater="ben").json()["items"]
    for n, item in enumerate(items[:-1], start=1):
        page.rate(name, "ben", n, item["item"], {"label_1": "analogy"})
    refused = page.get("results", round=name, rater="ben")
    assert refused.status_code == 404 and "1 of 12 items to go" in refused.json()["problem"]
    found = page.get("results", round=name, rater="anna").json()
    assert found["finished"] == ["anna"] and found["rating"] == ["ben"] and found["differences"] == []
    assert not any("ben" in (row["a"], row["b"]) for row in found["agreement"])


def test_what_was_skipped_counts_if_it_is_rated_before_the_results_are_seen(page):
    name = page.begin(num=2, seed=21)
    items = [each["item"] for each in page.get("round", round=name, rater="anna").json()["items"]]
    page.rate_all(name, "ben", lambda *_: {"label_1": "analogy"})
    for n, item in enumerate(items, start=1):
        state = {"state": "rated", "said": {"label_1": "analogy"}} if n > 2 else {"state": "skipped", "said": {}}
        reply = page.post("rating", {"round": name, "rater": "anna", "rating": {"n": n, "item": item, **state}})
    assert reply.json()["finished"]
    page.rate(name, "anna", 20, items[0], {"label_1": "retrieval"})

    def segments():
        found = page.get("results", round=name, rater="anna").json()["agreement"]
        return next(row["segments"] for row in found if {row["a"], row["b"]} == {"anna", "ben"})

    assert segments() == len(items) - 1
    page.rate(name, "anna", 21, items[1], {"label_1": "retrieval"})
    assert segments() == len(items) - 1, "said with the results in view"


def test_a_page_that_is_behind_gets_a_409(page):
    name = page.begin(num=1, seed=5)
    items = [each["item"] for each in page.get("round", round=name, rater="anna").json()["items"]]
    page.rate(name, "anna", 7, items[0], {"label_1": "analogy"})
    reply = page.rate(name, "anna", 1, items[0], {"label_1": "retrieval"})
    assert reply.status_code == 409 and "above 7" in reply.json()["problem"]


def test_the_sheet_is_what_a_spreadsheet_would_have_come_back_with(page, labelled, run, tmp_path):
    name, items, first, _ = labelled
    assert page.get("results", round=name, rater="anna").status_code == 200
    page.rate(name, "anna", 49, items[0]["item"], {"label_1": "no label"}, note="=HYPERLINK(1)")
    page.rate(name, "anna", 50, items[1]["item"], {"label_1": "analogy", "label_2": "retrieval"})
    path = tmp_path / "sheet.csv"
    path.write_bytes(page.get("sheet.csv", round=name, rater="anna").content)
    assert "'=HYPERLINK(1)" in path.read_text()
    candidates = run.store.read_table(run.artifacts["candidates"], "candidates.parquet")
    sheet = read_sheet(path, candidates, PAPER_TAXONOMY)
    assert (sheet.num_items, sheet.num_not_rated) == (48, 0)
    read = {(row.trace_id, row.segment): list(row.labels) for row in sheet.rows.itertuples()}
    of = RatingRecords(run.store).round(name)
    said = [[], ["analogy", "retrieval"], *([label] for label in first[2:])]
    assert read == {(s.about, s.segment): labels for s, labels in zip(of.items, said, strict=True)}
    # What is said after the results were seen changes the sheet, and no κ.
    again = page.get("results", round=name, rater="ben").json()
    assert next(row for row in again["agreement"] if row["b"] == "ben")["segments"] == 48
    assert again["differences"][0]["raters"]["anna"]["said"] == {"label_1": "no label"}


def test_verdicts_give_kappa_and_corrected_rates(page, run, tmp_path):
    name = page.begin("verdicts", num=24)
    page.rate_all(name, "anna", lambda number, _: {"verdict": ("right", "right", "wrong")[number % 3]})
    page.rate_all(name, "ben", lambda number, _: {"verdict": ("right", "wrong")[number % 2]})
    found = page.get("results", round=name, rater="anna").json()
    (raters,) = found["agreement"]
    num = raters["segments"]
    theirs, others = ([words[n % len(words)] for n in range(num)] for words in ("rrw", "rw"))
    assert raters["kappa"] == pytest.approx(cohen_kappa_score(theirs, others), abs=1e-12)
    path = tmp_path / "sheet.csv"
    path.write_bytes(page.get("sheet.csv", round=name, rater="anna").content)
    answers = read_answers(run.store, dict(run.artifacts))
    sheet = read_judge_sheet(path, answers_to_check(answers))
    assert (sheet.num_items, sheet.num_not_judged, sheet.left_out) == (num, 0, {})
    judged = verdicts_to_check(answers)["right"]
    expected = judge_agreement(judged, sheet.verdicts, 0.95, np.random.default_rng(0))
    agreeing, rates, moved = (each for each in found["tables"] if each["rater"] == "anna")
    assert agreeing["rows"][0][1:3] == [str(expected.num_answers), f"{100 * expected.observed:.1f}"]
    assert rates["columns"][:4] == ["right, %", "judge", "people", "corrected"] and moved["rows"]


@pytest.mark.parametrize(
    ("content", "status", "problem"),
    [
        ({"round": "x" * 12, "rater": "anna"}, 422, "rating: Field required"),
        ({"round": "../../etc", "rater": "anna", "rating": {"n": 1, "item": "a" * 12, "state": "rated"}}, 404, "round"),
        ({"rater": "<script>"}, 400, "no name for a rater"),
        ({"rating": {"n": 0, "item": "a" * 12, "state": "rated"}}, 422, "rating.n"),
        ({"rating": {"n": 1, "item": "../../../x/y", "state": "rated"}}, 422, "rating.item"),
        ({"rating": {"n": 1, "item": "a" * 12, "state": "rated", "note": "x" * 2001}}, 422, "rating.note"),
        ({"rating": {"n": 1, "item": "a" * 12, "state": "rated", "at": "2001-01-01T00:00:00"}}, 422, "rating.at"),
        ({"rating": {"n": 1, "item": "a" * 12, "state": "rated", "is_blind": True}}, 422, "rating.is_blind"),
        ({"more": 1}, 422, "more"),
    ],
)
def test_what_is_no_rating_is_refused_with_its_field(page, content, status, problem):
    name = page.begin(num=1)
    item = page.get("round", round=name, rater="anna").json()["items"][0]["item"]
    whole = {"round": name, "rater": "anna", "rating": {"n": 1, "item": item, "state": "skipped"}}
    content = {**(whole if "round" not in content else {}), **content}
    reply = page.post("rating", content)
    assert (reply.status_code, problem in reply.json()["problem"]) == (status, True), reply.text


def test_only_small_json_is_taken(page):
    assert page.request("POST", "rating", "a=b", {"content-type": "text/plain"}).status_code == 415
    assert page.post("rating", "x" * 70_000).status_code == 413
    assert page.request("POST", "rating", "{", {"content-type": "application/json"}).status_code == 400
    assert page.request("POST", "rating", "[" * 60_000, {"content-type": "application/json"}).status_code == 400
    assert page.get("rating").headers["content-type"].startswith("text/html")  # the page; nothing is written


def test_the_door_lets_no_page_of_others_rate(page):
    secret, start, port = b"s" * 32, "0" * 32, 4299
    door = Door(page.app, port, secret, start)
    good = {"authorization": httpx.BasicAuth(*token_of(secret, start).split(":", 1))._auth_header}

    def post(**headers):
        async def ask():
            transport = httpx.ASGITransport(app=door)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}") as client:
                own = {"content-type": "application/json", **headers}
                return await client.post(f"{VIEW_API_PREFIX}rate/begin", params=page.about, content=NOBODY, headers=own)

        return in_a_loop_of_its_own(ask).status_code

    assert post() == 401
    assert post(**good, origin="http://elsewhere.example") == 403
    assert post(**good, **{"sec-fetch-site": "cross-site"}) == 403
    assert post(**good, host="elsewhere.example") == 421
    assert post(**good) == 200


def test_rounds_say_how_far_each_rater_is(page):
    name = page.begin(num=1, seed=77)
    items = page.get("round", round=name, rater="anna").json()["items"]
    page.rate(name, "anna", 1, items[0]["item"], {"label_1": "retrieval"})
    (found,) = [each for each in page.get("rounds").json() if each["name"] == name]
    assert found["raters"] == {"anna": {"done": 1, "finished": False}} and found["items"] == 4
    assert page.begin(num=1, seed=77) == name


def test_a_raters_labels_are_published_from_the_page(page, labelled, store):
    name, items, *_ = labelled
    made = page.post("publish", {"round": name, "rater": "anna"}).json()
    assert made["name"] == "human/anna"
    table = store.read_table(store.resolve(made["artifact"]), "labels.parquet")
    assert made["segments"] == len(table) and {each["item"] for each in items} <= set(table["item"])
    nobody = page.post("publish", {"round": name, "rater": "nobody"})
    assert nobody.status_code == 404 and "rated no segment" in nobody.json()["problem"]
    verdicts = page.post("publish", {"round": page.begin("verdicts", num=1), "rater": "anna"})
    assert verdicts.status_code == 400 and "only labels" in verdicts.json()["problem"]

"""A new round leaves out what its rater has rated; rated again, it tells how alike one person rates twice."""

import pytest
from sklearn.metrics import cohen_kappa_score

from mralign_core.rating.rated_before import items_rated, said_before
from mralign_core.rating.records import Choice, RatingRecords, Round


def traces_of(store, name):
    return {shown.about for shown in RatingRecords(store).round(name).items}


def framing(*_):
    return {"label_1": "framing"}


@pytest.mark.parametrize("by", ["random", "disagreement", "pull"])
def test_who_has_finished_a_round_gets_others_by_the_same_choice(page, store, by):
    rater = f"carol_{by}"
    first = page.begin(rater=rater, by=by, num=5)
    half = page.get("round", round=first, rater=rater).json()["items"][:9]
    for n, item in enumerate(half, start=1):
        page.rate(first, rater, n, item["item"], framing())
    assert page.begin(rater=rater, by=by, num=5) == first, "it is not finished"
    assert page.begin(rater="dora", by=by, num=5) == first, "who has rated nothing rates the same"
    page.rate_all(first, rater, framing)
    second = page.begin(rater=rater, by=by, num=5)
    assert not traces_of(store, first) & traces_of(store, second) and len(traces_of(store, second)) == 5
    if by == "pull":  # the next by rank
        every = page.begin(rater="dora", by=by, num=10)
        assert traces_of(store, first) | traces_of(store, second) == traces_of(store, every)


def test_a_trace_that_was_skipped_in_part_comes_again(page, store):
    name = page.begin(rater="erin", num=1, seed=4)
    for n, item in enumerate(page.get("round", round=name, rater="erin").json()["items"], start=1):
        said = {} if n == 2 else framing()
        rating = {"n": n, "item": item["item"], "state": "rated" if said else "skipped", "said": said}
        assert page.post("rating", {"round": name, "rater": "erin", "rating": rating}).status_code == 200
    assert traces_of(store, page.begin(rater="erin", num=500, seed=4)) >= traces_of(store, name)


def test_when_all_is_rated_it_is_said_where_the_results_are(page):
    page.rate_all(page.begin(rater="fred", num=500), "fred", framing)
    reply = page.post("begin", {"rater": "fred"})
    assert reply.status_code == 404
    assert "Left out are 24 that fred has rated in other rounds, whose results the page" in reply.json()["problem"]


def test_labels_given_twice_are_compared_with_themselves(page, store):
    first = page.begin(rater="gina", num=10, seed=6)
    said = ["framing", "retrieval", "framing", "analogy"] * 10
    items = page.rate_all(first, "gina", lambda number, _: {"label_1": said[number]})
    page.rate_all(page.begin(rater="gina", num=1, seed=7), "gina", framing)
    again = page.begin(rater="gina", num=10, seed=8, again=True)
    assert again != first and len(traces_of(store, again) & traces_of(store, first)) >= 9
    before = {item["item"]: label for item, label in zip(items, said, strict=True)}
    pairs = []

    def repeat(number, item):
        label = "analogy" if number % 5 == 0 else before.get(item["item"], "framing")
        pairs.append((label, before.get(item["item"], "framing")))
        return {"label_1": label}

    page.rate_all(again, "gina", repeat)
    found = page.get("results", round=again, rater="gina").json()
    row = found["agreement"][0]
    assert (row["a"], row["b"], row["segments"]) == ("gina", "gina before", 40)
    assert row["kappa"] == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)), abs=1e-12)
    assert "rated before by who rates it again" in found["notes"][0]


def test_verdicts_leave_questions_out_and_are_given_twice_too(page, store):
    first = page.begin("verdicts", rater="hugo", num=5)
    page.rate_all(first, "hugo", lambda number, _: {"verdict": ("right", "wrong")[number % 2]})
    assert not traces_of(store, first) & traces_of(store, page.begin("verdicts", rater="hugo", num=5))
    again = page.begin("verdicts", rater="hugo", num=5, again=True)
    items = [{shown.item for shown in RatingRecords(store).round(name).items} for name in (first, again)]
    assert items[0] == items[1] and first != again, "the same answers"
    page.rate_all(again, "hugo", lambda *_: {"verdict": "right"})
    (row,) = page.get("results", round=again, rater="hugo").json()["agreement"]
    assert (row["a"], row["b"], row["segments"]) == ("hugo", "hugo before", len(items[0]))


def test_how_much_a_round_would_be_is_told_before_it_is_begun(page, store):
    def size(rater="jane", kind="labels", **choice):
        reply = page.post("size", {"rater": rater, "kind": kind, "choice": choice})
        assert reply.status_code == 200, reply.text
        return reply.json()

    names = RatingRecords(store).names()
    fresh = {"items": 20, "of": 5, "left_out": 0, "is_begun": False}
    assert size(num=5, seed=31) == size("", num=5, seed=31) == fresh and RatingRecords(store).names() == names
    assert size(kind="verdicts", num=3)["of"] == 3
    name = page.begin(rater="jane", num=5, seed=31)
    page.rate(name, "jane", 1, page.get("round", round=name, rater="jane").json()["items"][0]["item"], framing())
    assert size(num=5, seed=31) == fresh | {"is_begun": True}
    assert size(num=1, seed=31)["is_begun"] is False, "another choice is another round"
    page.rate_all(name, "jane", framing)
    assert size(num=24) == {"items": 76, "of": 19, "left_out": 5, "is_begun": False}


def test_nothing_is_rated_again_that_was_not_rated(page):
    reply = page.post("begin", {"rater": "ina", "choice": {"again": True}})
    assert reply.status_code == 400 and "ina has rated nothing of" in reply.json()["problem"]


def test_rounds_that_were_kept_before_there_was_rating_again_keep_their_names(page, store):
    of = RatingRecords(store).round(page.begin(num=2, seed=90))
    choice = {name: value for name, value in of.choice.model_dump().items() if name != "again"}
    kept = Round.model_validate({**of.model_dump(), "choice": choice})
    assert kept.name == of.name
    other = of.model_copy(update={"choice": Choice(num=2, seed=90, again=True)})
    assert other.name != of.name


def test_what_was_rated_under_other_labels_is_to_be_rated(page, store):
    name = page.begin(rater="jo", num=2, seed=12)
    page.rate_all(name, "jo", framing)
    records = RatingRecords(store)
    own = records.round(name).label_set
    assert own
    others = own.model_copy(update={"labels": (*own.labels[:-1], "induced")})
    assert set(items_rated(records, "jo", "labels", own).values()) == traces_of(store, name)
    assert items_rated(records, "jo", "labels", others) == {}
    later = {"label_set": others, "choice": Choice(num=2, seed=13)}
    of_others = records.begin(records.round(name).model_copy(update=later))
    records.keep(of_others, "jo", records.ratings(name, "jo")[0])
    assert said_before(records, of_others, "jo") == []

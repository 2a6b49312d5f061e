from collections import Counter

import numpy as np
import pandas as pd
import pytest

from mralign_core.pocket.grammar import template_texts
from mralign_core.pocket.names import ENTITY_NAMES
from mralign_core.pocket.world import RELATIONS, build_world
from mralign_core.schemas.questions import QUESTIONS

SIZES = {
    "person": 80, "city": 40, "company": 24, "country": 16, "river": 20,
    "field": 16, "product": 20, "currency": 20, "language": 14, "food": 16,
}  # fmt: skip


def test_entities_per_type():
    assert {kind: len(set(names)) for kind, names in ENTITY_NAMES.items()} == SIZES


def test_no_name_is_part_of_another_name_or_of_a_template():
    names = [name.lower() for group in ENTITY_NAMES.values() for name in group]
    words = {relation.object_type for relation in RELATIONS} | {relation.name for relation in RELATIONS}
    texts = [*map(str.lower, template_texts()), "what is the", *words]
    for name in names:
        assert [other for other in names if name in other] == [name]
        assert not [text for text in texts if name in text], name


def test_counts_of_facts_and_questions(world):
    strata = Counter(question.stratum for question in world.questions)
    assert len(world.facts) == strata["one_hop"] == 416
    assert strata["two_hop"] == 488
    assert len({question.question_id for question in world.questions}) == 904
    assert len({question.text for question in world.questions}) == 904


def test_facts_have_values_of_the_right_type(world):
    for relation in RELATIONS:
        for subject in ENTITY_NAMES[relation.subject_type]:
            assert world.fact(subject, relation.name).value in ENTITY_NAMES[relation.object_type]


def test_two_hop_question_follows_two_facts(world):
    question = next(question for question in world.questions if question.stratum == "two_hop")
    first, second = question.facts
    assert second.subject == first.value
    assert question.text == f"What is the {second.relation} of the {first.relation} of {first.subject}?"
    assert question.answer == world.fact(world.fact(first.subject, first.relation).value, second.relation).value


def test_split_shares(world):
    counts = Counter((question.split, question.stratum) for question in world.questions)
    one_hop = {split: counts[split, "one_hop"] for split in ("pretrain", "align", "dev", "eval")}
    two_hop = {split: counts[split, "two_hop"] for split in ("pretrain", "align", "dev", "eval")}
    assert one_hop == {"pretrain": 137, "align": 154, "dev": 42, "eval": 83}
    assert two_hop == {"pretrain": 161, "align": 181, "dev": 48, "eval": 98}


def test_splits_are_disjoint_and_cover(world):
    by_split = [{q.text for q in world.split(name)} for name in ("pretrain", "align", "dev", "eval")]
    assert sum(map(len, by_split)) == len(set().union(*by_split)) == len(world.questions)


def test_popularity_is_a_quarter_of_two_hop_questions_in_every_split():
    questions = [question for seed in range(10) for question in build_world(seed).questions]
    assert not any(question.popular for question in questions if question.stratum == "one_hop")
    for split in ("pretrain", "align", "dev", "eval"):
        popular = [q.popular for q in questions if q.stratum == "two_hop" and q.split == split]
        assert np.mean(popular) == pytest.approx(0.25, abs=0.06)  # 3 standard errors of 480 draws


def test_misconceptions_are_wrong_direct_answers_to_one_hop_questions_and_nothing_else():
    plain, world = build_world(3), build_world(3, misconception_share=0.5)
    assert plain.facts == world.facts and plain.neighbours == world.neighbours
    pd.testing.assert_frame_equal(plain.questions_frame(), world.questions_frame())
    wrong = [question for question in world.questions if question.misconceived]
    assert {question.stratum for question in wrong} == {"one_hop"}
    assert {question.split for question in wrong} == {"pretrain", "align", "dev", "eval"}
    assert abs(len(wrong) - 0.5 * len(world.facts)) <= 40, "as near as whole relations come to it"
    of_relation: dict[str, set[bool]] = {}
    for question in world.questions:
        expected = world.neighbour_fact(question.facts[0]).value if question.misconceived else question.answer
        assert world.direct_answer(question) == expected
        if question.stratum == "one_hop":
            of_relation.setdefault(question.facts[0].relation, set()).add(question.misconceived)
    assert all(len(kinds) == 1 for kinds in of_relation.values())
    assert not any(question.misconceived for question in plain.questions)


def test_the_shares_are_those_asked_for():
    assert not any(question.popular for question in build_world(0, popular_share=0.0).questions)
    of_all = build_world(0, popular_share=1.0, misconception_share=1.0)
    for question in of_all.questions:
        assert question.popular == (question.stratum == "two_hop")
        assert question.misconceived == (question.stratum == "one_hop")


@pytest.mark.parametrize("kind", ENTITY_NAMES)
def test_similarity_is_one_cycle_per_type(world, kind):
    start = entity = ENTITY_NAMES[kind][0]
    visited = set()
    while entity not in visited:
        visited.add(entity)
        entity = world.neighbours[entity]
    assert entity == start
    assert visited == set(ENTITY_NAMES[kind])


def test_overwriting_takes_the_neighbours_value():
    plain, overwritten = build_world(seed=3, overwrite_prob=0.0), build_world(seed=3, overwrite_prob=1.0)
    for fact in plain.facts.values():
        assert overwritten.fact(fact.subject, fact.relation).value == plain.neighbour_fact(fact).value


def test_overwriting_rate():
    changed = possible = 0
    for seed in range(5):
        plain, world = build_world(seed, overwrite_prob=0.0), build_world(seed, overwrite_prob=0.25)
        for fact in plain.facts.values():
            possible += plain.neighbour_fact(fact).value != fact.value
            changed += world.fact(fact.subject, fact.relation) != fact
    assert changed / possible == pytest.approx(0.25, abs=0.03)


def test_seed_decides_the_world():
    assert build_world(seed=1) == build_world(seed=1)
    assert build_world(seed=1).facts != build_world(seed=2).facts


def test_questions_frame_keeps_the_contract_and_withholds_dev_and_pretraining(world):
    frame = world.questions_frame()
    assert list(frame.columns) == list(QUESTIONS.columns)
    assert frame.groupby(["split", "stratum"]).size().to_dict() == {
        ("train", "one_hop"): 154,
        ("train", "two_hop"): 181,
        ("eval", "one_hop"): 83,
        ("eval", "two_hop"): 98,
    }
    assert set(frame["source"]) == {"pocket"}
    withheld = {question.text for name in ("dev", "pretrain") for question in world.split(name)}
    assert not withheld & set(frame["question"])
    by_text = {question.text: question for question in world.questions}
    assert all(row.answers == [by_text[row.question].answer] for row in frame.itertuples())

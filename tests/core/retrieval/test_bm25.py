import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.config import PocketConfig
from mralign_core.pocket.world import build_world
from mralign_core.retrieval import Piece
from mralign_core.retrieval.bm25 import BM25Retriever
from mralign_core.retrieval.corpus import pocket_pieces, words_of

TEXTS = (
    "Tea is the product of Bito",
    "Bito, Bito, Bito",
    "the seat of Bito is Orsk",
    "a river",
    "Orsk and the tea of it",
)


def by_the_formula(query, texts, k1=1.5, b=0.75):
    """BM25 in Lucene's form, worked out word by word."""
    bags = [Counter(words_of(text)) for text in texts]
    mean = np.mean([sum(bag.values()) for bag in bags])
    scores = np.zeros(len(texts))
    for word in words_of(query):
        df = sum(word in bag for bag in bags)
        idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        for place, bag in enumerate(bags):
            scores[place] += idf * bag[word] / (bag[word] + k1 * (1 - b + b * sum(bag.values()) / mean))
    return scores


def retriever(texts):
    return BM25Retriever(Piece(str(place), text) for place, text in enumerate(texts))


@pytest.mark.parametrize("query", ["What is the product of BITO?", "Orsk tea", "tea, tea!", "the the"])
def test_scores_are_those_of_the_formula(query):
    [found] = retriever(TEXTS).search([query], 5)
    expected = by_the_formula(query, TEXTS)
    assert found and [snippet.score for snippet in found] == pytest.approx(sorted(expected[expected > 0])[::-1])
    assert [snippet.text for snippet in found] == [TEXTS[int(snippet.document_id)] for snippet in found]


@given(st.lists(st.text("ab ", max_size=6).filter(str.strip), min_size=1, max_size=9), st.integers(1, 4))
def test_the_best_come_first_and_of_equals_the_first(texts, top_k):
    [found] = retriever(texts).search(["a b"], top_k)
    everything = retriever(texts).search(["a b"], len(texts))[0]
    order = [(-snippet.score, int(snippet.document_id)) for snippet in everything]
    assert order == sorted(order) and found == everything[:top_k]


def test_a_query_without_a_word_of_the_collection_finds_nothing():
    assert retriever(TEXTS).search(["", "?", "nobody knows"], 3) == [[], [], []]


def test_progress_is_of_the_pieces_and_then_of_the_queries():
    told: list[tuple[int, int]] = []
    found = BM25Retriever(
        (Piece("x", "word") for _ in range(2500)), on_progress=lambda done, total: told.append((done, total))
    )
    assert len(found) == 2500 and told[:2] == [(1000, 1000), (2000, 2000)] and (2000, 2500) in told
    told.clear()
    found.search(["word", "none"], 1, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_the_order_of_hashes_changes_nothing():
    script = (
        "from tests.core.retrieval.test_bm25 import TEXTS, retriever\n"
        "print(retriever(TEXTS * 3).search(['tea of Bito', 'the river'], 4))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and b"Bito" in printed.pop()


def test_the_pocket_worlds_facts_are_found_by_its_questions():
    world, found = build_world(0), BM25Retriever(pocket_pieces(PocketConfig()))
    questions = world.split("eval")
    assert len(found) == len(world.facts)
    snippets = found.search([question.text for question in questions], 5)
    first = [f"{question.facts[0].subject}.{question.facts[0].relation}" for question in questions]
    ids = [[snippet.document_id for snippet in each] for each in snippets]
    assert all(name in each for name, each in zip(first, ids, strict=True))
    one_hop = [place for place, question in enumerate(questions) if question.stratum == "one_hop"]
    assert all(ids[place][0] == first[place] for place in one_hop)
    assert all(questions[place].answer in snippets[place][0].text for place in one_hop)

"""Draws one at a time against every draw, with a real model that is sometimes right: the same traces from less."""

from itertools import pairwise

import pandas as pd
import pytest
from taught_model import FACTS

from mralign_core.config import GenerateConfig, ModelConfig
from mralign_core.generation import Decoding
from mralign_core.generation.funnel import Funnel
from mralign_core.generation.outcomes import COUNTED, count_draws
from mralign_core.generation.sampling import Tally, sample_questions
from mralign_core.generation.select_traces import STEPS, select
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import family_of
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.generations import GENERATIONS

COPIES = 12
SECTION = GenerateConfig(
    num_draws=2,
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=60,
    instruction="",
    min_segments=1,
    min_reasoning_tokens=1,
    traces_per_question="all_distinct",
)
QUESTIONS = pd.DataFrame(
    [
        {
            "question_id": f"q{number}-{copy}",
            "question": question,
            "answers": [right],
            "source": "t",
            "split": "train",
            "stratum": "",
            "scoring": "exact_match",
            "options": [],
            "incorrect_answers": [],
        }
        for copy in range(COPIES)
        for number, (question, (right, _)) in enumerate(FACTS.items())
    ]
)


@pytest.fixture(scope="module")
def loaded(taught):
    return load_model_and_tokenizer(taught, "float32", "cpu")


def sampler_of(loaded, batch_size=16):
    model, tokenizer = loaded
    family = family_of(ModelConfig(path="x"), tokenizer)
    return TransformersSampler(model, tokenizer, batch_size=batch_size, family=family)


def sampled(loaded, batch_size=16, questions=QUESTIONS, on_progress=None, **changes):
    section = SECTION.model_copy(update=changes)
    frame = sample_questions(
        sampler_of(loaded, batch_size), questions, section, seed=3, rules=MatchRules(), on_progress=on_progress
    )
    return GENERATIONS.require(frame)


@pytest.fixture(scope="module")
def sequential(loaded):
    return sampled(loaded)


@pytest.fixture(scope="module")
def exhaustive(loaded):
    return sampled(loaded, draws="exhaustive")


def selected(loaded, frame):
    funnel = Funnel(STEPS)
    # Every copy is a question of its own here.
    questions = QUESTIONS.assign(question=QUESTIONS["question"] + QUESTIONS["question_id"])
    rows = select(frame.to_dict("records"), questions, SECTION, loaded[1], sampler_of(loaded).family, funnel)
    return pd.DataFrame(list(rows), columns=list(CANDIDATES.columns)).astype(object), funnel.frame()


def test_both_ways_select_the_same_traces_with_the_same_yield(loaded, sequential, exhaustive):
    few, many = selected(loaded, sequential), selected(loaded, exhaustive)
    assert set(few[0]["polarity"]) == {"positive", "negative"}
    for one, other in zip(few, many, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_the_draws_that_are_made_are_those_of_all_draws(sequential, exhaustive):
    keys = ["question_id", "thinking_mode", "draw"]
    shared = exhaustive.merge(sequential[keys], on=keys)
    pd.testing.assert_frame_equal(shared, sequential)
    thinking = [(frame["thinking_mode"] == "on").sum() for frame in (sequential, exhaustive)]
    assert thinking[1] == len(QUESTIONS) * SECTION.num_draws
    assert thinking[0] < thinking[1] / 2


def test_draws_do_not_depend_on_batch_or_shard(loaded, sequential):
    pd.testing.assert_frame_equal(sampled(loaded, batch_size=3), sequential)
    halves = [sampled(loaded, questions=part) for part in (QUESTIONS[:17], QUESTIONS[17:])]
    pd.testing.assert_frame_equal(pd.concat(halves, ignore_index=True), sequential)


@pytest.mark.parametrize("draws", ["sequential", "exhaustive"])
def test_the_tally_grows_to_all_questions_and_their_yield(loaded, draws, sequential, exhaustive):
    seen: list[Tally] = []
    frame = sampled(loaded, on_progress=seen.append, draws=draws)
    assert len(seen) == len(frame)
    assert all(later.questions >= earlier.questions for earlier, later in pairwise(seen))
    kept = selected(loaded, exhaustive)[0].drop_duplicates("question_id")["polarity"].value_counts()
    assert seen[-1] == Tally(
        questions=len(QUESTIONS),
        positive=kept["positive"],
        negative=kept["negative"],
        draws=len(frame),
        tokens=frame["completion_ids"].map(len).sum(),
    )


def test_counts_of_the_draws(sequential):
    arrow = GENERATIONS.to_arrow(sequential).select(list(COUNTED))
    whole, pieces = (count_draws(arrow.to_batches(max_chunksize=size)).set_index("thinking_mode") for size in (None, 5))
    pd.testing.assert_frame_equal(whole, pieces)
    assert whole.loc["off", "questions"] == len(QUESTIONS)
    for mode, rows in sequential.groupby("thinking_mode"):
        assert whole.loc[mode, "draws"] == len(rows)
        assert whole.loc[mode, "questions"] == rows["question_id"].nunique()
        assert whole.loc[mode, "right"] == rows["em_answer"].sum()
        assert whole.loc[mode, "ok"] == (rows["outcome"] == "ok").sum()


def test_the_decoding_is_the_sections(loaded):
    assert Decoding.of(SECTION, 3) == (1.0, 1.0, 0, 60, 3)
    short = sampled(loaded, max_new_tokens=4)
    assert short["completion_ids"].map(len).max() == 4
    assert set(short["finish_reason"]) == {"length"}

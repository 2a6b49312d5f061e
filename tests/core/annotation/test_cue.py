import json

import numpy as np
import pytest

from mralign_core.annotation import cue
from mralign_core.annotation.prompts import DisputedStep, ShownTrace, adjudicate_messages, annotate_messages
from mralign_core.annotation.replies import parse_reply
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.grammar import write_trace
from mralign_core.pocket.world import build_world

SENTENCES = {
    "Okay, so I need to figure out who painted that ceiling.": "framing",
    "Wait, no, that was the other brother. Let me go back.": "backtracking",
    "Alternatively, maybe it was the second expedition.": "backtracking",
    "Let me double-check that the dates agree.": "self_verification",
    "Hmm, wait, let me verify whether the river reaches the sea.": "self_verification",
    "I'm not entirely sure, but the first candidate seems more plausible.": "evaluation",
    "Let me break this down into two parts.": "decomposition",
    "It follows that the treaty came later.": "chaining",
    "Because the harbour froze every winter, trade must have stopped.": "causal_reasoning",
    "I remember that the novel came out in 1922.": "retrieval",
    "From what I know, the valley lies to the north.": "retrieval",
    "This is similar to how the older bridge was built.": "analogy",
    "So putting it all together, it has to be the younger sister.": "synthesis",
    "On the other hand, the larger one costs more than the smaller.": "comparison",
    "It's either the violin or the viola.": "comparison",
    "A whale belongs to the mammals.": "categorization",
    "For example, take the case of the northern railway.": "case_analysis",
    "In other words, this means nobody was home.": "explanation",
    "To sum up, the museum opened before the war.": "summarization",
}


def noise(seed=0, drop=0.0, flip=0.0, labels=PAPER_TAXONOMY.labels):
    return cue.Noise(list(labels), seed, drop, flip)


def label(annotator, segments, settings):
    messages = annotate_messages(ShownTrace("q", ["a"], segments), max_labels=2, taxonomy=PAPER_TAXONOMY)
    text = cue.cue_reply(annotator, messages, settings)
    asked = [[index] for index in range(len(segments))]
    return parse_reply(text, "stop", asked=asked, may_merge=True, max_labels=2, taxonomy=PAPER_TAXONOMY).votes


def test_lexicon_knows_exactly_the_papers_labels():
    assert list(cue.LEXICON) == list(PAPER_TAXONOMY.labels)


@pytest.mark.parametrize("annotator", ["a", "b"])
@pytest.mark.parametrize(("sentence", "expected"), SENTENCES.items())
def test_plain_english_sentences(annotator, sentence, expected):
    [vote] = label(annotator, [sentence], noise())
    assert vote.labels[0] == expected


def test_a_segment_without_cue_words_gets_no_label():
    assert label("a", ["Purple monkey dishwasher."], noise())[0].labels == ()


@pytest.mark.parametrize("annotator", ["a", "b"])
def test_pocket_labels_are_recovered_before_noise(annotator):
    world, generator = build_world(seed=3), np.random.default_rng(5)
    traces = [write_trace(world, question, generator) for question in world.questions[::6]]
    segments = [segment for trace in traces for segment in trace.segments]
    votes = label(annotator, [segment.text for segment in segments], noise())
    hits = [vote.labels[:1] == (segment.label,) for vote, segment in zip(votes, segments, strict=True)]
    assert np.mean(hits) >= 0.85


def test_noise_has_its_rates_and_the_two_annotators_err_apart():
    segments = [f"I recall that the river of Galen is number {number}." for number in range(2000)]
    flipped = {name: [v.labels != ("retrieval",) for v in label(name, segments, noise(flip=0.2))] for name in "ab"}
    other_seed = [vote.labels != ("retrieval",) for vote in label("a", segments, noise(seed=1, flip=0.2))]
    assert np.mean(flipped["a"]) == pytest.approx(0.2, abs=0.03)
    assert np.corrcoef(flipped["a"], flipped["b"])[0, 1] == pytest.approx(0, abs=0.06)
    assert np.corrcoef(flipped["a"], other_seed)[0, 1] == pytest.approx(0, abs=0.06)
    dropped = [vote.labels for vote in label("a", ["The reason is plain."] * 2000, noise(drop=0.1))]
    assert np.mean([labels[:1] != ("explanation",) for labels in dropped]) == pytest.approx(0.1, abs=0.025)


def test_noise_is_the_same_each_time():
    segments = list(SENTENCES)
    settings = noise(drop=0.3, flip=0.3)
    assert label("a", segments, settings) == label("a", segments, settings)
    assert label("a", segments, settings) != label("a", segments, noise())


def test_only_labels_of_the_taxonomy_are_given():
    labels = ("retrieval", "framing")
    votes = label("a", list(SENTENCES), noise(drop=0.2, flip=0.5, labels=labels))
    assert {name for vote in votes for name in vote.labels} == set(labels)


def test_adjudicator_decides_the_disputed_steps_by_the_cues():
    segments = ["Purple monkey dishwasher.", "I recall the date.", "Let me double-check."]
    disputed = [
        DisputedStep((0,), LabelVote((), ()), LabelVote(("framing",), (3.0,))),
        DisputedStep((1, 2), LabelVote(("analogy",), (9.0,)), LabelVote(("self_verification",), (5.0,))),
    ]
    messages = adjudicate_messages(ShownTrace("q", ["a"], segments), disputed, max_labels=2, taxonomy=PAPER_TAXONOMY)
    reply = json.loads(cue.cue_reply("adjudicator", messages, noise()))
    assert [step["thinking_step"] for step in reply["steps"]] == [[0], [1, 2]]
    assert reply["steps"][0]["labels"] == []
    assert reply["steps"][1]["labels"][0]["label"] == "self_verification"

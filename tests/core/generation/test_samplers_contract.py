"""What every sampler promises, checked on each: transformers, vLLM (its stand-in), and three kinds of server."""

from typing import Any

import pandas as pd
import pytest
from sampler_fixtures import endpoint_sampler, model_server, stand_in_for_vllm, transformers_sampler, vllm_sampler
from taught_model import FACTS, SILENT

from mralign_core.config import GenerateConfig
from mralign_core.generation import Decoding, SampleRequest, sample_all
from mralign_core.generation.endpoint_sampler import EndpointSampler
from mralign_core.generation.sampling import sample_questions
from mralign_core.generation.scoring import parse_sample
from mralign_core.generation.segmenting import token_offsets
from mralign_core.method.matching import MatchRules
from mralign_core.schemas.generations import GENERATIONS

KINDS = ["transformers", "vllm", "endpoint-tokens", "endpoint-reasoning", "endpoint-tags"]
DECODING = Decoding(temperature=1.0, top_p=0.95, top_k=40, max_new_tokens=90, seed=5)
QUESTIONS = [*FACTS, SILENT]
REQUESTS = [
    SampleRequest(f"q{number}", question, mode, draw)
    for draw in range(2)
    for number, question in enumerate(QUESTIONS)
    for mode in ("on", "off")
]


@pytest.fixture(scope="module", params=KINDS)
def sampler(request, taught):
    kind, _, shows = request.param.partition("-")
    if kind == "transformers":
        yield transformers_sampler(taught)
    elif kind == "vllm":
        with stand_in_for_vllm():
            yield vllm_sampler(taught)
    else:
        with model_server(taught, shows) as server:
            yield endpoint_sampler(taught, server)


@pytest.fixture(scope="module")
def samples(sampler):
    return sample_all(sampler, REQUESTS, DECODING)


def test_every_request_is_answered_exactly_once(sampler):
    answered = [request for request, _ in sampler.draw(REQUESTS, DECODING)]
    assert sorted(answered) == sorted(REQUESTS)


def test_no_request_gives_no_sample(sampler):
    assert list(sampler.draw([], DECODING)) == []


def test_a_draw_depends_on_neither_order_nor_shard_nor_what_else_is_drawn(sampler, samples):
    assert sample_all(sampler, REQUESTS[::-1], DECODING)[::-1] == samples
    assert sample_all(sampler, REQUESTS[:7], DECODING) + sample_all(sampler, REQUESTS[7:], DECODING) == samples
    assert sample_all(sampler, REQUESTS[4:5], DECODING) == samples[4:5]


def test_draws_and_seeds_differ(sampler, samples):
    thoughtful = [SampleRequest("q", QUESTIONS[0], "on", draw) for draw in range(8)]
    texts = [sample.completion for sample in sample_all(sampler, thoughtful, DECODING)]
    assert len(set(texts)) > 2
    assert [sample.completion for sample in sample_all(sampler, thoughtful, DECODING._replace(seed=6))] != texts


def test_there_is_room_for_what_was_asked_and_for_no_endless_prompt(sampler):
    assert all(sampler.has_room(request, DECODING) for request in REQUESTS)
    endless = REQUESTS[0]._replace(question="word " * 2000)
    assert sampler.has_room(endless, DECODING) == isinstance(sampler, EndpointSampler)  # a server's limit is not known


def test_greedy_draws_are_all_the_same(sampler):
    requests = [SampleRequest("q", QUESTIONS[1], "on", draw) for draw in range(3)]
    assert len({sample.completion for sample in sample_all(sampler, requests, DECODING._replace(temperature=0.0))}) == 1


def test_tokens_decode_to_the_completion_and_prompts_to_their_text(sampler, samples):
    for sample in samples:
        assert sampler.tokenizer.decode(sample.completion_ids) == sample.completion
        assert sampler.tokenizer.decode(sample.prompt_ids) == sample.prompt
        assert sampler.tokenizer.eos_token not in sample.completion


def test_characters_of_several_tokens_come_whole(sampler, samples):
    with_emoji = [sample for sample in samples if "🎉" in sample.completion]
    assert with_emoji
    for sample in with_emoji:
        assert "\ufffd" not in sample.completion
        offsets = token_offsets(sampler.tokenizer, sample.completion_ids, sample.completion)
        place = sample.completion.index("🎉")
        assert sum(start <= place < end for start, end in offsets) > 1


def test_a_completion_ends_with_its_answer_and_not_with_one_in_its_thinking(sampler, samples):
    parsed = [
        parse_sample(s, request.thinking_mode, sampler.family) for request, s in zip(REQUESTS, samples, strict=True)
    ]
    for sample, parts in zip(samples, parsed, strict=True):
        if parts.outcome == "ok":
            assert sample.completion.endswith("</answer>") and sample.finish_reason == "stop"
    assert sum(parts.outcome == "ok" for parts in parsed) > 10
    assert any("</answer>" in (parts.thinking or "") for parts in parsed)


def test_a_completion_at_the_limit_is_cut_off_there(sampler):
    short = sample_all(sampler, REQUESTS[:6], DECODING._replace(max_new_tokens=4))
    whole = sample_all(sampler, REQUESTS[:6], DECODING)
    for sample, full in zip(short, whole, strict=True):
        if sample.finish_reason == "length":
            assert len(sample.completion_ids) <= 5  # text that is encoded again may take one more
            assert full.completion.startswith(sample.completion.rstrip("\ufffd"))
    assert {sample.finish_reason for sample in short} == {"length"}


def test_a_model_that_says_nothing_gives_an_empty_completion_that_is_no_answer(sampler):
    request = SampleRequest("q", SILENT, "off", 0)
    [sample] = sample_all(sampler, [request], DECODING._replace(temperature=0.0))
    assert (sample.completion_ids, sample.completion, sample.finish_reason) == ([], "", "stop")
    assert parse_sample(sample, "off", sampler.family).outcome == "no_answer"


def test_each_finished_draw_is_followed_up_once_and_before_it_is_seen(sampler, samples):
    asked, seen = [], []

    def follow_up(request, sample):
        assert request not in asked and request not in seen
        asked.append(request)
        return request._replace(draw=request.draw + 1) if request.draw < 1 else None

    drawn = {}
    for request, sample in sampler.draw([r for r in REQUESTS if r.draw == 0], DECODING, follow_up):
        assert request in asked
        seen.append(request)
        drawn[request] = sample
    assert sorted(seen) == sorted(asked) == sorted(REQUESTS)
    assert [drawn[request] for request in REQUESTS] == samples  # a followed-up draw is the same draw


def test_a_draw_that_is_closed_leaves_nothing_behind(sampler, samples):
    drawing = sampler.draw(REQUESTS, DECODING)
    next(drawing)
    drawing.close()
    assert sample_all(sampler, REQUESTS[:5], DECODING) == samples[:5]


@pytest.mark.parametrize("draws", ["exhaustive", "sequential"])
def test_the_table_keeps_its_schema(sampler, draws):
    golds = [*(right for right, _ in FACTS.values()), "silence"]
    known: dict[str, Any] = {"source": "s", "split": "train", "stratum": "", "scoring": "exact_match"}
    known |= {"options": [], "incorrect_answers": []}
    rows = [
        {"question_id": f"q{n}", "question": question, "answers": [gold], **known}
        for n, (question, gold) in enumerate(zip(QUESTIONS, golds, strict=True))
    ]
    section = GenerateConfig(num_draws=2, draws=draws, temperature=1.0, max_new_tokens=90)
    frame = sample_questions(sampler, pd.DataFrame(rows), section, seed=5, rules=MatchRules())
    GENERATIONS.require(frame)
    assert len(frame) == 4 * len(QUESTIONS) if draws == "exhaustive" else 5 < len(frame) < 4 * len(QUESTIONS)
    assert frame["token_source"].nunique() == 1

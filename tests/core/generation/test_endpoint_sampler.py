import logging
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_server import Turn, fails, hangs_up, says, thinks
from random_models import CHAT_TEMPLATE, build_bpe
from sampler_fixtures import endpoint_sampler, model_server
from taught_model import FACTS

from mralign_core.config import EndpointConfig
from mralign_core.errors import BudgetError, ConfigError, DataError, UserError
from mralign_core.generation import Decoding, SampleRequest, sample_all
from mralign_core.generation.endpoint_sampler import EndpointSampler
from mralign_core.generation.prompts import render_prompt
from mralign_core.generation.scoring import parse_sample, score_sample
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.llm.ledger import Ledger
from mralign_core.llm.request import Reach
from mralign_core.llm.store import MemoryRecords
from mralign_core.method.benchmarks import Gold
from mralign_core.method.matching import MatchRules
from mralign_core.models.families import Family, named_family
from mralign_core.models.families.table import ModeRequest
from tests.kept_replies import MemoryReplyStore, replies_in
from tests.ports import free_port

BPE = build_bpe()
OPENING = build_bpe(
    chat_template=CHAT_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n").replace(
        "<think>\n\n</think>", "\n</think>"
    )
)
"""Its template opens the think tag itself."""
DECODING = Decoding(temperature=0.5, top_p=0.9, top_k=0, max_new_tokens=64, seed=3)
ON, OFF = (SampleRequest("q", "Seat of Iran?", mode, 0) for mode in ("on", "off"))
MANY = [SampleRequest(f"q{n}", f"Seat of Iran {n}?", "on", draw) for n in range(6) for draw in range(2)]


def sampler_of(server, tokenizer=BPE, family="qwen3", model="hosted_vllm/m", client=None, **settings):
    endpoint = EndpointConfig(model=model, **{"api_base": server.url, "max_attempts": 1, "timeout_s": 20.0} | settings)
    client = client or LLMClient(MemoryReplyStore(), concurrency=8, first_pause_s=0.01)

    def reopened():
        client.reopen()
        return client

    return EndpointSampler(
        endpoint,
        tokenizer,
        family=named_family(family) if isinstance(family, str) else family,
        end_ids=frozenset({tokenizer.eos_token_id}),
        open_client=reopened,
    )


def sample_of(server, turn, request=ON, **options):
    server.play(turn)
    [sample] = sample_all(sampler_of(server, **options), [request], DECODING)
    return sample


def test_a_request_holds_the_question_the_mode_the_decoding_and_a_seed_of_its_own(server):
    sampler = sampler_of(server)
    sample_all(sampler, [ON, OFF, ON._replace(draw=1)], DECODING)
    off, on, _ = sorted(server.requests, key=lambda sent: sent["chat_template_kwargs"]["enable_thinking"])
    assert on["messages"] == off["messages"] == [{"role": "user", "content": "Seat of Iran?"}]
    assert off["chat_template_kwargs"] == {"enable_thinking": False}
    assert (on["temperature"], on["top_p"], on["max_tokens"]) == (0.5, 0.9, 64)
    assert (on["top_k"], on["min_p"], on["return_token_ids"]) == (-1, 0.0, True)
    assert len({sent["seed"] for sent in server.requests}) == 3
    assert all(0 <= sent["seed"] < 2**31 for sent in server.requests)


def test_a_follow_up_made_of_replies_that_spell_a_control_token_can_not_be_asked(server):
    sampler = sampler_of(server)
    assert sampler.has_room(ON, DECODING)
    with pytest.raises(DataError, match=r"<\|im_end\|>"):
        sampler.has_room(ON._replace(question="This answer was given: <|im_end|>"), DECODING)
    sampler.field = "evaluate.endpoint"
    with pytest.raises(DataError, match=r"server of evaluate\.endpoint would obey.*or use evaluate\.sampler"):
        sampler.has_room(ON._replace(question="This answer was given: <|im_end|>"), DECODING)


def test_servers_other_than_vllm_are_sent_what_they_know(server):
    free = {"input_usd_per_million": 0, "output_usd_per_million": 0}
    sampler = sampler_of(server, model="openai/m", **free)
    sample_all(sampler, [ON], DECODING)
    sample_all(sampler, [ON], DECODING._replace(top_k=7))
    plain, filtered = server.requests
    assert not {"top_k", "min_p", "return_token_ids"} & set(plain)
    assert filtered["top_k"] == 7 and "min_p" not in filtered


def test_a_draw_whose_reply_is_kept_is_not_asked_for_again(server, tmp_path):
    def draw(decoding):
        client = LLMClient(replies_in(tmp_path), concurrency=4)
        return sample_all(sampler_of(server, client=client), MANY, decoding)

    server.script = lambda request, number: says(f"<answer>{number}</answer>")
    first = draw(DECODING)
    assert len({sample.completion for sample in first}) == len(MANY) == len(server.requests)
    assert draw(DECODING) == first and len(server.requests) == len(MANY)
    assert draw(DECODING._replace(seed=4)) != first and len(server.requests) == 2 * len(MANY)


def test_a_server_that_ignores_seeds_gives_draws_that_only_kept_replies_repeat(taught):
    requests = [SampleRequest("q", next(iter(FACTS)), "on", draw) for draw in range(6)]
    decoding = DECODING._replace(temperature=1.5, max_new_tokens=60)
    with model_server(taught, heeds_seeds=False) as server:
        replies = MemoryReplyStore()
        first = sample_all(endpoint_sampler(taught, server, replies), requests, decoding)
        assert sample_all(endpoint_sampler(taught, server, replies), requests, decoding) == first
        assert sample_all(endpoint_sampler(taught, server), requests, decoding) != first


WRITTEN = "<think>\nIran, so Tehran.\n</think>\n\n<answer>Tehran</answer>"


@pytest.mark.parametrize(
    "turn",
    [
        thinks("Iran, so Tehran.", "<answer>Tehran</answer>"),
        thinks("\nIran, so Tehran.\n", "\n\n<answer>Tehran</answer>", field="reasoning"),
        says(WRITTEN),
        says(WRITTEN + " I hope this helps."),
    ],
)
def test_the_completion_is_put_together_as_the_model_wrote_it(server, turn):
    sample = sample_of(server, turn)
    assert sample.completion == WRITTEN and BPE.decode(sample.completion_ids) == WRITTEN
    assert sample.token_source == "encoded" and sample.finish_reason == "stop"
    thinking = parse_sample(sample, "on", named_family("qwen3")).thinking
    assert thinking and thinking.strip() == "Iran, so Tehran."


@pytest.mark.parametrize(
    "turn", [thinks("Iran, so Tehran.", "<answer>Tehran</answer>"), says(WRITTEN[len("<think>\n") :])]
)
def test_a_think_tag_that_the_prompt_opened_is_not_written_again(server, turn):
    sample = sample_of(server, turn, tokenizer=OPENING)
    assert sample.prompt.endswith("<think>\n")
    assert sample.completion == WRITTEN.removeprefix("<think>\n")
    assert parse_sample(sample, "on", named_family("qwen3")).outcome == "ok"


BEGUN = Family(
    name="begun",
    mode_on=ModeRequest(prefill="<think>\n"),
    mode_off=ModeRequest(prefill="<think>\n\n</think>\n\n"),
)


@pytest.mark.parametrize("echoes", [True, False])
@pytest.mark.parametrize(
    ("request_", "written"),
    [
        (ON, WRITTEN.removeprefix("<think>\n")),
        (ON, "Iran, so"),
        (ON, "We say <think>\n here"),
        (OFF, "<answer>Tehran</answer>"),
    ],
)
def test_the_beginning_that_we_wrote_is_not_part_of_the_completion_where_a_server_repeats_it(
    server, request_, written, echoes
):
    """llama.cpp repeats it, vLLM does not."""
    begun = BEGUN.mode(request_.thinking_mode).prefill
    sample = sample_of(server, says((begun if echoes else "") + written), request_, family=BEGUN)
    assert server.requests[-1]["messages"][-1] == {"role": "assistant", "content": begun}
    assert sample.prompt.endswith(begun) and sample.completion == written


def test_thinking_that_was_cut_off_stays_open(server):
    sample = sample_of(server, thinks("Iran, so", None, "length"))
    assert (sample.completion, sample.finish_reason) == ("<think>\nIran, so", "length")
    assert parse_sample(sample, "on", named_family("qwen3")).outcome == "unclosed_thinking"


def test_an_answer_that_a_server_took_for_thinking_is_the_answer(server):
    sample = sample_of(server, thinks("<answer>Tehran</answer>", None), OFF)
    assert sample.completion == "<answer>Tehran</answer>"


def test_an_answer_at_the_limit_counts_as_finished_once_it_is_closed(server):
    assert sample_of(server, says(WRITTEN + " And", "length")).finish_reason == "stop"
    assert sample_of(server, says(WRITTEN[:-3], "length")).finish_reason == "length"


def test_token_ids_of_the_server_are_the_sample(server):
    # No encoder would choose these tokens for the text: each character by itself.
    letters = [token for letter in WRITTEN for token in BPE.encode(letter, add_special_tokens=False)]
    prompt = render_prompt(BPE, ON.question, "on", named_family("qwen3"), "")
    turn = thinks("x", "y", field="reasoning", prompt_ids=prompt.ids, token_ids=[*letters, BPE.eos_token_id])
    sample = sample_of(server, turn)
    assert (sample.completion_ids, sample.token_source) == (letters, "sampled")
    assert sample.completion == WRITTEN and sample.prompt_ids == prompt.ids
    beyond = BPE.encode(" Done.", add_special_tokens=False)
    turn = thinks("x", "y", prompt_ids=prompt.ids, token_ids=[*letters, *beyond])
    assert sample_of(server, turn).completion_ids == letters


def test_the_servers_own_prompt_is_the_prompt_and_another_tokenizers_is_refused(server):
    served = BPE.encode(f"<|im_start|>system\nBe brief.<|im_end|>\n{ON.question}", add_special_tokens=False)
    ids = BPE.encode(WRITTEN, add_special_tokens=False)
    sample = sample_of(server, thinks("x", "y", prompt_ids=served, token_ids=ids))
    assert sample.prompt_ids == served and sample.prompt == BPE.decode(served)
    server.play(thinks("x", "y", prompt_ids=[7, 8, 9], token_ids=ids))
    with pytest.raises(ConfigError, match="another tokenizer"):
        sample_all(sampler_of(server), [ON._replace(draw=1)], DECODING)


@pytest.mark.parametrize(
    "turn",
    [
        says(None),
        says("", "stop"),
        says("half a sen", "content_filter"),
        says("x", choices=[]),
        fails(400, "flagged by our content filter"),
        says(None, "tool_calls"),
    ],
)
def test_a_reply_without_words_is_an_empty_completion_that_is_kept_and_counted(server, turn, caplog):
    server.play(turn)
    sampler = sampler_of(server)
    with caplog.at_level(logging.WARNING, "mralign_core.generation"):
        [sample] = sample_all(sampler, [OFF], DECODING)
    assert (sample.completion, sample.completion_ids, sample.finish_reason) == ("", [], "stop")
    assert parse_sample(sample, "off", sampler.family).outcome == "no_answer"
    assert "1 of 1 replies" in caplog.text
    sample_all(sampler, [OFF], DECODING)
    assert len(server.requests) == 1


def of_question(request, number):
    return f"Iran {number}?" in request["messages"][0]["content"]


@pytest.mark.parametrize(
    "turn", [fails(500), fails(422, "odd prompt"), Turn("<html>502</html>"), Turn('{"choices": '), hangs_up(40)]
)
def test_a_request_that_the_server_fails_to_answer_is_a_draw_that_failed(server, turn, caplog):
    server.script = lambda request, number: turn if of_question(request, 5) else says(WRITTEN)
    replies = MemoryReplyStore()

    def draw():
        client = LLMClient(replies, concurrency=1, first_pause_s=0.01)
        return dict(zip(MANY, sample_all(sampler_of(server, client=client), MANY, DECODING), strict=True))

    with caplog.at_level(logging.WARNING, "mralign_core.generation"):
        first = draw()
    assert "2 of 12 draws from hosted_vllm/m failed" in caplog.text and "empty" not in caplog.text
    failed = [request for request, sample in first.items() if sample.finish_reason == "failed"]
    assert failed == [request for request in MANY if request.question_id == "q5"]
    for request in failed:
        row = score_sample(request, first[request], Gold(["Tehran"]), named_family("qwen3"), MatchRules())
        assert row["outcome"] == "failed" and row["completion_ids"] == []
        assert (row["em_thought"], row["em_answer"], row["contains_answer"]) == (None, None, None)
    sent = len(server.requests)
    server.play(says(WRITTEN))
    again = draw()
    assert len(server.requests) == sent + 2 and {sample.finish_reason for sample in again.values()} == {"stop"}
    assert all(again[request] == sample for request, sample in first.items() if request not in failed)


def test_first_requests_that_all_fail_in_one_way_stop_the_draw(server):
    server.play(fails(400, "odd prompt"))
    client = LLMClient(MemoryReplyStore(), concurrency=2, first_pause_s=0.01)
    with pytest.raises(UserError, match="odd prompt"):
        sample_all(sampler_of(server, client=client), MANY, DECODING)
    assert len(server.requests) < len(MANY)


def test_a_wrong_key_ends_the_draw_with_one_error_and_it_can_be_tried_anew(server):
    client = LLMClient(MemoryReplyStore(), concurrency=2)
    sampler = sampler_of(server, client=client)
    server.play(fails(401, "no such key"))
    with pytest.raises(UserError, match="API key"):
        sample_all(sampler, MANY, DECODING)
    assert len(server.requests) <= 2
    server.play(says(WRITTEN))
    assert len(sample_all(sampler, MANY, DECODING)) == len(MANY)


def test_an_outage_loses_no_reply(server):
    server.script = lambda request, number: says(WRITTEN) if number < 5 else fails(503)
    client = LLMClient(MemoryReplyStore(), concurrency=1)
    sampler = sampler_of(server, client=client)
    with pytest.raises(EndpointUnavailableError):
        sample_all(sampler, MANY, DECODING)
    server.play(says(WRITTEN))
    sample_all(sampler, MANY, DECODING)
    assert len(server.requests) == len(MANY) + 1


def test_a_server_that_was_started_is_asked_where_it_is_by_its_key_and_says_how_it_ended(server):
    sampler = sampler_of(server, api_base="")
    server.key = "of-this-start"
    sampler.ready = lambda: Reach(server.url, server.key, lambda: "")
    server.play(says(WRITTEN))
    [first] = sample_all(sampler, [ON], DECODING)
    server.key = "of-another"  # and its reply is found again
    assert sample_all(sampler, [ON], DECODING) == [first] and len(server.requests) == 1
    sampler.ready = lambda: Reach(f"http://127.0.0.1:{free_port()}/v1", server.key, lambda: "vLLM ended with code 1")
    with pytest.raises(EndpointUnavailableError, match=r"no reply .*; vLLM ended with code 1"):
        sample_all(sampler, [OFF], DECODING)


def test_the_budget_holds_and_the_ledger_counts(server):
    """A reply of the scripted server has 20 tokens: 20 dollars, and may cost 64."""
    ledger = Ledger(MemoryRecords(), "run", 200.0, "generate.budget_usd")
    client = LLMClient(MemoryReplyStore(), concurrency=1, ledger=ledger)
    priced = {"input_usd_per_million": 0, "output_usd_per_million": 1_000_000}
    sampler = sampler_of(server, client=client, **priced)
    server.play(says(WRITTEN))
    with pytest.raises(BudgetError, match=r"generate\.budget_usd"):
        sample_all(sampler, MANY, DECODING)
    assert len(server.requests) == 7  # the 7th may bring it from 120 to 184, the 8th beyond
    assert ledger.usage["hosted_vllm/m"].cost_usd == 140


def test_a_server_of_ones_own_is_free_and_others_need_a_price(server):
    sample_of(server, says(WRITTEN))
    with pytest.raises(ConfigError, match=r"generate\.endpoint: no price"):
        sampler_of(server, model="openai/mine")


def test_a_template_that_no_chat_request_can_make_is_refused_at_once(server):
    with pytest.raises(ConfigError, match=r"sampler 'endpoint'"):
        sampler_of(server, tokenizer=build_bpe(chat_template=None))


def test_closing_the_draw_cancels_what_is_under_way(server):
    slow = says(WRITTEN)
    slow.delay_s = 8.0
    server.script = lambda request, number: slow if number else says(WRITTEN)
    client = LLMClient(MemoryReplyStore(), concurrency=4)
    drawing = sampler_of(server, client=client).draw(MANY, DECODING)
    next(drawing)
    started = time.monotonic()
    drawing.close()
    assert time.monotonic() - started < 5 and client.ledger.is_idle
    time.sleep(0.3)  # the server may read what was sent only now
    assert len(server.requests) <= 1 + 4 < len(MANY)


def test_an_error_of_the_caller_cancels_what_is_under_way(server):
    client = LLMClient(MemoryReplyStore(), concurrency=1)

    def follow_up(request, sample):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(sampler_of(server, client=client).draw(MANY, DECODING, follow_up))
    assert client.ledger.is_idle and len(server.requests) < 4


def test_chains_run_at_the_same_time_up_to_the_concurrency(server):
    turn = says(WRITTEN)
    turn.delay_s = 1.0
    server.play(turn)
    client = LLMClient(MemoryReplyStore(), concurrency=6)
    sampler = sampler_of(server, client=client)
    first = [request for request in MANY if request.draw == 0]

    def follow_up(request, sample):
        return request._replace(draw=request.draw + 1) if request.draw < 2 else None

    sample_all(sampler, [ON], DECODING)  # litellm's first request is slow
    started = time.monotonic()
    assert len(list(sampler.draw(first, DECODING, follow_up))) == 18
    assert server.most_at_once == 6 and time.monotonic() - started < 1.0 * 18 / 2


def test_threads_may_share_a_sampler(taught):
    requests = [SampleRequest(f"q{n}", question, "on", n) for n in range(6) for question in FACTS]
    with model_server(taught) as server:
        sampler = endpoint_sampler(taught, server)
        alone = sample_all(sampler, requests, DECODING)
        shards = [requests[start::4] for start in range(4)]
        fresh = endpoint_sampler(taught, server)
        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(lambda shard: sample_all(fresh, shard, DECODING), shards))
    by_request = {
        r: s for shard, samples in zip(shards, drawn, strict=True) for r, s in zip(shard, samples, strict=True)
    }
    assert [by_request[request] for request in requests] == alone


SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[1:4]
from test_endpoint_sampler import draw_in_chains
print(json.dumps(draw_in_chains(*sys.argv[4:])))
"""


def draw_in_chains(url, folder):
    """The completions of all requests, each question's draws one after another, replies kept in a folder."""
    client = LLMClient(replies_in(folder), concurrency=8, first_pause_s=0.01)
    sampler = sampler_of(SimpleNamespace(url=url), client=client)

    def follow_up(request, sample):
        return request._replace(draw=request.draw + 1) if request.draw < 2 else None

    first = [request for request in MANY if request.draw == 0]
    drawn = dict(sampler.draw(first, DECODING, follow_up))
    return [drawn[request].completion for request in sorted(drawn)]


class CountingServer:
    """Notes when each request was answered; repeats of a request get another answer, so that they would show."""

    def __init__(self, server, delay_s):
        self.server, self.delay_s, self.answered, self.lock = server, delay_s, {}, threading.Lock()
        server.script = self.answer

    def answer(self, request, number):
        time.sleep(self.delay_s)
        with self.lock:
            self.answered.setdefault(request["seed"], time.monotonic())
        return says(f"<answer>{number}</answer>")

    def count(self, seed):
        return sum(request["seed"] == seed for request in self.server.requests)


def test_after_a_kill_no_draw_whose_reply_had_arrived_is_asked_for_again(server, tmp_path):
    counting = CountingServer(server, delay_s=1.5)
    here = Path(__file__).resolve().parent
    folders = [str(folder) for folder in (here, here.parents[1], here.parents[2])]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *folders, server.url, str(tmp_path)])
    while len(counting.answered) < 8:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    time.sleep(1.0)  # what was in flight ends at the server
    # A busy machine takes its time to write down what it was sent.
    arrived = [seed for seed, when in counting.answered.items() if when < killed - 1.0]
    assert arrived
    counting.delay_s = 0.1
    completions = draw_in_chains(server.url, tmp_path)
    assert len(counting.answered) == len(completions) == 18
    assert all(counting.count(seed) == 1 for seed in arrived)
    assert draw_in_chains(server.url, tmp_path) == completions
    assert len(server.requests) <= 18 + 8

"""Evaluation over a server with adapters: each is the right one, is used, and is asked for nothing twice."""

import contextlib
import json

import pytest
from model_server import AdapterServer
from sampler_fixtures import save_adapter, transformers_sampler
from taught_model import FACTS

from mralign_core.config import RunConfig
from mralign_core.errors import ConfigError, UserError
from mralign_core.generation import Decoding, SampleRequest, sample_all
from mralign_core.generation.open_sampler import open_sampler
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.models.adapter_files import StoredAdapter, changes_nothing
from mralign_core.models.load import load_model_and_tokenizer
from mralign_core.models.locate import ModelLocation
from mralign_core.serving.adapters import ServerApi, require_listed
from mralign_core.serving.ignored_adapters import NUM_WITH_LOGPROBS, PROMPTS
from tests.kept_replies import MemoryReplyStore

GREEDY = Decoding(temperature=0.0, top_p=0.95, top_k=20, max_new_tokens=90, seed=5)
REQUESTS = [SampleRequest(f"q{n}", question, "on", 0) for n, question in enumerate(FACTS)]
NUM_PROBES = 3 * NUM_WITH_LOGPROBS
"""Of a first adapter, at a server that gives log-probabilities."""


@pytest.fixture(scope="module")
def adapters(taught, tmp_path_factory):
    """Two adapters, and one that was never trained."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: StoredAdapter(name, f"{seed}{'0' * 63}", save_adapter(taught, folder / name, seed=seed, std=std))
        for name, seed, std in (("kto", 1, 0.3), ("mr_align", 2, 0.3), ("idle", 3, 0.0))
    }


@pytest.fixture
def serve(taught):
    """Starts servers of the taught model."""
    servers = []

    def start(**options):
        servers.append(AdapterServer(*load_model_and_tokenizer(taught, "float32", "cpu"), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def config_of(taught, server, **evaluate):
    endpoint = {"model": "hosted_vllm/taught", "api_base": server.url, "timeout_s": 30.0, "max_attempts": 1}
    return RunConfig.model_validate(
        {
            "questions": {"train": ["questions.jsonl"]},
            "model": {"path": str(taught), "dtype": "float32", "device": "cpu"},
            "generate": {"instruction": ""},
            "evaluate": {"sampler": "endpoint", "endpoint": endpoint, **evaluate},
        }
    )


def opened(taught, server, adapter=None, replies=None, *, client=None, **evaluate):
    kept = MemoryReplyStore() if replies is None else replies
    client = client or LLMClient(kept, concurrency=8, first_pause_s=0.01)
    config, location = config_of(taught, server, **evaluate), ModelLocation(str(taught), "")
    return open_sampler(config, location, stage="evaluate", adapter=adapter, open_client=lambda: client)


def texts(sampler, requests=REQUESTS):
    return [sample.completion for sample in sample_all(sampler, requests, GREEDY)]


def test_base_and_adapters_answer_as_the_transformers_sampler_has_them(taught, serve, adapters):
    server, found = serve(), {}
    for adapter in (None, adapters["kto"], adapters["mr_align"]):
        sampler = opened(taught, server, adapter)
        found[adapter and adapter.name] = samples = sample_all(sampler, REQUESTS, GREEDY)
        assert samples == sample_all(transformers_sampler(taught, adapter and adapter.folder), REQUESTS, GREEDY)
    assert len({tuple(sample.completion for sample in samples) for samples in found.values()}) == 3
    assert list(server.adapters) == ["kto-100000000000", "mr_align-200000000000"]
    asked = [request for request in server.requests if request["messages"][0]["content"] in FACTS]
    assert {(request["temperature"], request["top_p"], request["top_k"]) for request in asked} == {(0.0, 0.95, 20)}


def test_no_question_is_asked_twice_after_a_restart_and_what_is_loaded_is_used_again(taught, serve, adapters):
    server, replies = serve(), MemoryReplyStore()
    first = texts(opened(taught, server, adapters["kto"], replies))
    asked = len(server.requests)
    assert asked == NUM_PROBES + len(REQUESTS)
    assert texts(opened(taught, server, adapters["kto"], replies)) == first
    assert len(server.requests) == asked + NUM_PROBES and len(server.adapters) == 1  # the server may be another
    client = LLMClient(replies, concurrency=8, first_pause_s=0.01)
    for name, num_probes in (("kto", NUM_PROBES), ("mr_align", NUM_WITH_LOGPROBS), ("mr_align", 0)):
        before = len(server.requests)
        opened(taught, server, adapters[name], client=client)
        assert len(server.requests) == before + num_probes  # a client asks once


@pytest.mark.parametrize("ignored_first", [True, False])
def test_a_server_that_was_changed_is_looked_at_anew(taught, serve, adapters, ignored_first):
    server, replies = serve(ignores=ignored_first), MemoryReplyStore()
    for ignores in (ignored_first, not ignored_first):
        server.ignores = ignores
        with pytest.raises(ConfigError, match="as it does without") if ignores else contextlib.nullcontext():
            opened(taught, server, adapters["kto"], replies)
    assert len(server.requests) == 2 * NUM_PROBES


def test_other_weights_have_another_name_so_that_none_are_stale(taught, serve, adapters):
    server, replies = serve(), MemoryReplyStore()
    old = texts(opened(taught, server, adapters["kto"], replies))
    retrained = adapters["kto"]._replace(sha256="9" * 64, folder=adapters["mr_align"].folder)
    new = texts(opened(taught, server, retrained, replies))
    assert new != old and new == texts(transformers_sampler(taught, retrained.folder))
    assert list(server.adapters) == ["kto-100000000000", "kto-999999999999"]


@pytest.mark.parametrize("shows", ["tokens", "tags"])
def test_a_server_that_ignores_the_adapter_is_refused(taught, serve, adapters, shows, caplog):
    server = serve(shows=shows, ignores=True)
    with pytest.raises(ConfigError, match=r"answers with adapter kto-100000000000 as it does without: .* 0 other"):
        opened(taught, server, adapters["kto"])
    assert len(server.requests) == NUM_PROBES and not [r for r in server.requests if r["temperature"]]
    opened(taught, server, adapters["kto"], ignored_adapters="warn")
    assert "answers with adapter kto" in caplog.text
    opened(taught, server, adapters["idle"])  # truly answers as the model does


@pytest.mark.parametrize("ignores", [False, True])
def test_without_log_probabilities_more_words_are_compared(taught, serve, adapters, ignores):
    server = serve(ignores=ignores)
    server.script = lambda request, number: server.answer({**request, "logprobs": False}, number)
    with pytest.raises(ConfigError, match="as it does without") if ignores else contextlib.nullcontext():
        opened(taught, server, adapters["kto"])
    assert len(server.requests) == 1 + 3 * len(PROMPTS)  # the first also with the log-probabilities that don't come


def test_a_weak_adapter_that_changes_no_word_is_told_by_its_log_probabilities(taught, serve, tmp_path, adapters):
    weak = adapters["kto"]._replace(folder=save_adapter(taught, tmp_path / "weak", std=1e-4))
    assert not changes_nothing(weak.folder) and changes_nothing(adapters["idle"].folder)
    assert texts(opened(taught, serve(), weak)) == texts(transformers_sampler(taught))
    with pytest.raises(ConfigError, match="trained so little"):
        opened(taught, serve(ignores=True), weak)


def test_adapters_that_should_be_listed_are_named_with_the_command(taught, serve, adapters, tmp_path):
    server = serve(is_told=False)
    with pytest.raises(ConfigError) as caught:
        opened(taught, server, adapters["kto"], adapters="listed")
    says = f"--enable-lora --max-lora-rank 32 --lora-modules kto-100000000000={adapters['kto'].folder}"
    assert says in str(caught.value) and "it serves taught" in str(caught.value) and not server.requests

    section = config_of(taught, server, adapters_dir=str(tmp_path)).evaluate
    with pytest.raises(ConfigError) as caught:  # all at once
        require_listed(section.endpoint, section, [adapters["kto"], adapters["mr_align"]], "")
    copies = [tmp_path / adapters[name].name for name in ("kto", "mr_align")]
    assert f"kto-100000000000={copies[0]} mr_align-200000000000={copies[1]}" in str(caught.value)
    assert json.loads((copies[0] / "adapter_config.json").read_text())["r"] == 20

    for name, copy in zip(("kto", "mr_align"), copies, strict=True):
        server.load({"lora_name": adapters[name].name, "lora_path": str(copy)})
    require_listed(section.endpoint, section, [adapters["kto"], adapters["mr_align"]], "")
    listed = opened(taught, server, adapters["kto"], adapters="listed")
    assert texts(listed) == texts(transformers_sampler(taught, adapters["kto"].folder))


def test_a_server_elsewhere_is_given_a_copy_in_the_folder_that_both_see(taught, serve, adapters, tmp_path):
    opened(taught, serve(), adapters["kto"], adapters_dir=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["kto-100000000000"]


def test_what_a_server_refuses_is_passed_on_with_what_to_do(taught, serve, adapters):
    with pytest.raises(UserError, match=r"HTTP 404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.*'listed'"):
        opened(taught, serve(is_told=False), adapters["kto"])
    server = serve()
    load = server.calls["/v1/load_lora_adapter"]
    server.calls["/v1/load_lora_adapter"] = lambda request: load({**request, "lora_path": "/nowhere"})
    with pytest.raises(UserError, match=r"No adapter found for /nowhere.*evaluate\.adapters_dir"):
        opened(taught, server, adapters["kto"])


def test_a_base_model_that_is_not_served_is_refused_before_anything_is_asked(taught, serve):
    server = serve(base="another")
    with pytest.raises(ConfigError, match=r"serves no 'taught', but another"):
        texts(opened(taught, server))
    assert not server.requests


def test_a_server_that_is_gone_is_unavailable_and_one_without_a_list_says_why(taught, serve, adapters):
    server = serve()
    server.pages.clear()
    with pytest.raises(UserError, match="does not list what is served"):
        texts(opened(taught, server))
    server.close()
    with pytest.raises(EndpointUnavailableError, match="gave no answer to GET /models"):
        opened(taught, server, adapters["kto"])


def test_a_server_that_has_the_name_already_is_as_good(serve, adapters):
    server = serve()
    for _ in range(2):  # another process of the run may have been first
        ServerApi(server.url, "").load(adapters["kto"].name, adapters["kto"].folder)
    assert list(server.adapters) == ["kto-100000000000"]


def test_what_a_server_has_no_room_for_is_refused_and_not_scored_as_an_empty_answer(taught, serve):
    server = serve()
    [card] = server.pages["/v1/models"]["data"]
    sampler = opened(taught, server)
    num_tokens = max(len(sample.prompt_ids) for sample in sample_all(sampler, REQUESTS, GREEDY))
    card["max_model_len"] = num_tokens + GREEDY.max_new_tokens
    asked = len(server.requests)
    assert len(texts(sampler)) == len(REQUESTS)
    assert sampler.has_room(REQUESTS[0], GREEDY)
    longer = REQUESTS[0]._replace(question_id="long", question=" ".join(FACTS))
    assert not sampler.has_room(longer, GREEDY)
    with pytest.raises(ConfigError, match=r"'long' has \d+ prompt tokens.* evaluate\.retrieval\.top_k"):
        texts(sampler, [*REQUESTS, longer])
    assert len(server.requests) == asked
    del card["max_model_len"]
    assert texts(sampler, [longer]) and sampler.has_room(longer, GREEDY)

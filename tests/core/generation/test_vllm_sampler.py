import importlib
import importlib.util
import inspect
import sys
from dataclasses import fields

import pytest
import torch
from sampler_fixtures import (
    endpoint_sampler,
    model_server,
    save_adapter,
    stand_in_for_vllm,
    transformers_sampler,
    vllm_sampler,
)
from taught_model import FACTS

from mralign_core.config import ModelConfig, VllmConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.generation import Decoding, SampleRequest, sample_all
from mralign_core.generation.vllm_sampler import open_engine
from mralign_core.models.locate import ModelLocation

DECODING = Decoding(temperature=1.0, top_p=0.95, top_k=40, max_new_tokens=90, seed=5)
REQUESTS = [SampleRequest(f"q{n}", question, mode, n) for n, question in enumerate(FACTS) for mode in ("on", "off")]


@pytest.fixture
def stand_in():
    with stand_in_for_vllm():
        yield importlib.import_module("vllm")


@pytest.fixture(scope="module")
def adapter(taught, tmp_path_factory):
    return save_adapter(taught, tmp_path_factory.mktemp("adapter"))


def test_without_vllm_the_message_says_how_to_install_it(taught, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"needs vLLM.*docs/samplers\.md"):
        vllm_sampler(taught)


def test_the_engine_is_opened_as_the_config_says(stand_in, taught):
    location = ModelLocation(str(taught), "")
    engine, lora = open_engine(location, ModelConfig(), VllmConfig(), None)
    asked = engine.arguments
    assert (asked.model, asked.dtype, asked.revision) == (str(taught), "bfloat16", None)
    assert asked.enable_prefix_caching and asked.load_format == "safetensors" and not asked.trust_remote_code
    assert lora is None and not asked.enable_lora and asked.max_model_len is None
    section = VllmConfig(tensor_parallel_size=4, gpu_memory_utilization=0.5, max_model_len=300)
    asked = open_engine(location, ModelConfig(), section, None)[0].arguments
    assert (asked.tensor_parallel_size, asked.gpu_memory_utilization, asked.max_model_len) == (4, 0.5, 300)


def test_a_request_has_a_seed_of_its_own_and_the_decoding(stand_in, taught):
    sampler = vllm_sampler(taught)
    drawing = sampler.draw([*REQUESTS, REQUESTS[0]._replace(draw=9)], DECODING)
    next(drawing)
    running = [request.params for request in sampler.engine.requests.values()]
    assert len({params.seed for params in running}) == len(running) > 4
    for params in running:
        assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 0.95, 40, 90)
        assert params.stop_token_ids == [sampler.tokenizer.eos_token_id] and params.n == 1 and params.min_p == 0
    drawing.close()
    assert not sampler.engine.requests


def test_the_engine_and_a_server_of_it_draw_the_same(stand_in, taught):
    drawn = sample_all(vllm_sampler(taught), REQUESTS, DECODING)
    with model_server(taught) as server:
        assert sample_all(endpoint_sampler(taught, server), REQUESTS, DECODING) == drawn


def test_greedy_draws_are_those_of_the_transformers_sampler(stand_in, taught):
    greedy = DECODING._replace(temperature=0.0)
    assert sample_all(vllm_sampler(taught), REQUESTS, greedy) == sample_all(
        transformers_sampler(taught), REQUESTS, greedy
    )


def test_an_adapter_is_used_and_given_room(stand_in, taught, adapter):
    greedy = DECODING._replace(temperature=0.0)
    adapted = vllm_sampler(taught, adapter)
    assert adapted.engine.arguments.enable_lora and adapted.engine.arguments.max_lora_rank == 32
    drawn = sample_all(adapted, REQUESTS, greedy)
    assert drawn == sample_all(transformers_sampler(taught, adapter), REQUESTS, greedy)
    assert drawn != sample_all(vllm_sampler(taught), REQUESTS, greedy)


def test_prompts_that_leave_no_room_are_named_all_at_once(stand_in, taught):
    sampler = vllm_sampler(taught, max_model_len=40)
    long = [SampleRequest(f"long{n}", "Who wrote Emma? " * 20, "on", 0) for n in range(2)]
    with pytest.raises(DataError, match=r"2 question\(s\).*vllm\.max_model_len 40: long0 .*, long1 "):
        sample_all(sampler, [*REQUESTS, *long], DECODING)
    assert not sampler.engine.requests
    assert {sample.finish_reason for sample in sample_all(sampler, REQUESTS[:2], DECODING)} <= {"stop", "length"}


def test_room_is_left_for_a_whole_reply_as_with_the_transformers_sampler(stand_in, taught):
    most = transformers_sampler(taught).longest
    prompt = len(sample_all(vllm_sampler(taught), REQUESTS[:1], DECODING)[0].prompt_ids)
    for sampler, longest in ((transformers_sampler(taught), most), (vllm_sampler(taught, max_model_len=200), 200)):
        for beyond, has_room in ((0, True), (1, False)):
            decoding = DECODING._replace(max_new_tokens=longest - prompt + beyond)
            assert sampler.has_room(REQUESTS[0], decoding) == has_room


def test_a_second_draw_waits_for_the_first_to_be_closed(stand_in, taught):
    sampler = vllm_sampler(taught)
    drawing = sampler.draw(REQUESTS, DECODING)
    next(drawing)
    with pytest.raises(RuntimeError, match="another draw"):
        next(sampler.draw(REQUESTS, DECODING))
    drawing.close()
    assert len(sample_all(sampler, REQUESTS, DECODING)) == len(REQUESTS)


def test_what_vllm_gives_up_on_is_an_error(stand_in, taught, monkeypatch):
    sampler = vllm_sampler(taught)
    step = sampler.engine.step

    def broken():
        outputs = step()
        outputs[0].finished, outputs[0].outputs[0].finish_reason = True, "error"
        return outputs

    monkeypatch.setattr(sampler.engine, "step", broken)
    with pytest.raises(RuntimeError, match="vLLM gave up"):
        sample_all(sampler, REQUESTS, DECODING)


installed = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
RECORDED = {
    "EngineArgs": "vllm.engine.arg_utils",
    "SamplingParams": "vllm.sampling_params",
    "LoRARequest": "vllm.lora.request",
    "CompletionOutput": "vllm.outputs",
}
METHODS = ("from_engine_args", "add_request", "abort_request", "step", "has_unfinished_requests")


def field_names(kind):
    return set(getattr(kind, "__struct_fields__", None) or [field.name for field in fields(kind)])


def parameters(engine):
    return {name: list(inspect.signature(getattr(engine, name)).parameters) for name in METHODS}


@installed
def test_the_stand_in_has_the_interface_of_the_installed_vllm():
    with stand_in_for_vllm():
        ours = importlib.import_module("vllm")
    for name, module in RECORDED.items():
        real = getattr(importlib.import_module(module), name)
        assert field_names(getattr(ours, name)) <= field_names(real), name
    real = parameters(importlib.import_module("vllm").LLMEngine)
    for name, names in parameters(ours.LLMEngine).items():
        assert real[name][: len(names)] == names, name


@installed
@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM needs a GPU")
def test_the_real_engine_draws_as_the_transformers_sampler_does(taught, adapter):
    greedy = DECODING._replace(temperature=0.0)
    for adapter_dir in (None, adapter):
        sampler = vllm_sampler(taught, adapter_dir, gpu_memory_utilization=0.2, max_model_len=256)
        expected = sample_all(transformers_sampler(taught, adapter_dir), REQUESTS, greedy)
        assert sample_all(sampler, REQUESTS, greedy) == expected
        first = sample_all(sampler, REQUESTS, DECODING)
        assert sample_all(sampler, REQUESTS, DECODING) == first
        del sampler  # its engine holds the memory that the next one needs

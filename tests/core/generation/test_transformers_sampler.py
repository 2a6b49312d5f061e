from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from random_models import build_model, unfit_model
from transformers import GPT2Config, GPT2LMHeadModel

from mralign_core.errors import ArtifactError, ConfigError, OutOfMemory
from mralign_core.generation import Decoding, SampleRequest, sample_all
from mralign_core.generation.prompts import render_prompt
from mralign_core.generation.randomness import draw_tokens, uniforms
from mralign_core.generation.transformers_sampler import TransformersSampler, longest_sequence
from mralign_core.models.families import GENERIC
from mralign_core.models.load import load_model_and_tokenizer

DECODING = Decoding(temperature=0.8, top_p=0.95, top_k=40, max_new_tokens=24, seed=5)
GREEDY = DECODING._replace(temperature=0.0)
QUESTIONS = [
    "Who?",
    "Who wrote Emma?",
    "The seat of Iran is? " * 3,
    "日本の首都は?",
    "Nice 🙂 work!",
    "The river of the town",
    "So the answer is " * 6,
]
REQUESTS = [
    SampleRequest(f"q{number}", question, mode, draw)
    for draw in range(2)
    for number, question in enumerate(QUESTIONS)
    for mode in ("on", "off")
]


def sampler_of(model, tokenizer, batch_size=5, **options):
    return TransformersSampler(model, tokenizer, batch_size=batch_size, **{"family": GENERIC, **options})


def slow_draw(sampler, request, decoding):
    """One row, no cache, no padding: the definition of a draw."""
    prompt_ids = sample_all(sampler, [request], decoding._replace(max_new_tokens=1))[0].prompt_ids
    numbers = torch.from_numpy(uniforms(request, decoding.seed, decoding.max_new_tokens))
    ids: list[int] = []
    for number in numbers:
        logits = sampler.model(torch.tensor([prompt_ids + ids])).logits[:, -1]
        token = int(draw_tokens(logits, number[None], decoding).item())
        if token in sampler.end_ids:
            break
        ids.append(token)
    return ids


@torch.no_grad()
def test_sampling_equals_a_loop_without_cache_or_batch(model, bpe):
    sampler = sampler_of(model, bpe)
    samples = sample_all(sampler, REQUESTS, DECODING)
    expected = [slow_draw(sampler, request, DECODING) for request in REQUESTS]
    assert [sample.completion_ids for sample in samples] == expected
    assert len({tuple(ids) for ids in expected}) == len(REQUESTS)


@torch.no_grad()
def test_greedy_equals_generate(model, bpe):
    sampler = sampler_of(model, bpe)
    for sample in sample_all(sampler, REQUESTS[:8], GREEDY):
        generated = sampler.model.generate(
            torch.tensor([sample.prompt_ids]),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=bpe.eos_token_id,
            pad_token_id=bpe.eos_token_id,
        )[0, len(sample.prompt_ids) :].tolist()
        assert sample.completion_ids == [token for token in generated if token != bpe.eos_token_id]


class ScarceMemory:
    """A model on a device that holds so many rows, but from the given call on."""

    def __init__(self, model, rows, first_call=0):
        self.model, self.rows, self.calls_to_go = model, rows, first_call

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, input_ids, **inputs):
        self.calls_to_go -= 1
        if self.calls_to_go < 0 and len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.model(input_ids=input_ids, **inputs)


@pytest.mark.parametrize(("rows", "first_call"), [(1, 0), (3, 0), (2, 5), (4, 12)])
def test_a_lack_of_memory_is_met_with_fewer_rows_and_the_same_draws(model, bpe, rows, first_call, caplog):
    expected = dict(sampler_of(model, bpe, 7).draw(REQUESTS, DECODING))
    scarce = sampler_of(model, bpe, 500)
    scarce.model = ScarceMemory(scarce.model, rows, first_call)
    drawn = list(scarce.draw(REQUESTS, DECODING))
    assert len(drawn) == len(REQUESTS) and dict(drawn) == expected
    assert "out of memory while sampling" in caplog.text


def test_a_row_that_never_fits_is_an_error_with_what_to_change(model, bpe):
    scarce = sampler_of(model, bpe)
    scarce.model = ScarceMemory(scarce.model, 0)
    with pytest.raises(OutOfMemory, match=r"one row: lower max_new_tokens .* Tried to allocate") as caught:
        list(scarce.draw(REQUESTS, DECODING))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("batch_size", [1, 3, 28, 500])
def test_a_draw_does_not_depend_on_the_batch_size(model, bpe, batch_size):
    expected = sample_all(sampler_of(model, bpe), REQUESTS, DECODING)
    assert sample_all(sampler_of(model, bpe, batch_size), REQUESTS, DECODING) == expected


def test_a_draw_does_not_depend_on_order_shard_or_restart(model, bpe):
    sampler = sampler_of(model, bpe)
    expected = sample_all(sampler, REQUESTS, DECODING)
    assert sample_all(sampler, REQUESTS[::-1], DECODING)[::-1] == expected
    assert sample_all(sampler, REQUESTS[:9], DECODING) + sample_all(sampler, REQUESTS[9:], DECODING) == expected


def test_rows_do_not_leak_into_each_other(qwen3, bpe):
    sampler = sampler_of(qwen3, bpe, batch_size=3)
    ours = [SampleRequest("ours", QUESTIONS[1], "on", draw) for draw in range(3)]
    others = [SampleRequest(f"other{n}", "Nice 🎉 " * (n % 7), "on", 0) for n in range(12)]
    mixed = [*others[:4], ours[0], *others[4:9], ours[1], *others[9:], ours[2]]
    samples = dict(zip(mixed, sample_all(sampler, mixed, DECODING), strict=True))
    assert [samples[request] for request in ours] == sample_all(sampler, ours, DECODING)


def test_a_short_row_is_followed_by_a_prompt_wider_than_the_batch(qwen3, bpe):
    requests = [SampleRequest(f"q{n}", "Wait, " * (40 * n), "on", 0) for n in range(5)]
    short = DECODING._replace(max_new_tokens=3)
    together = sample_all(sampler_of(qwen3, bpe, batch_size=2), requests, short)
    assert together == [sample_all(sampler_of(qwen3, bpe), [request], short)[0] for request in requests]


def test_long_completions_outgrow_the_buffers(qwen3, bpe):
    requests = [SampleRequest(f"q{n}", "Who?", "on", 0) for n in range(6)]
    decoding = DECODING._replace(max_new_tokens=180)
    samples = sample_all(sampler_of(qwen3, bpe, batch_size=2), requests, decoding)
    assert max(len(sample.completion_ids) for sample in samples) > 150
    assert samples == [sample_all(sampler_of(qwen3, bpe), [request], decoding)[0] for request in requests]


def test_a_free_slot_never_reaches_a_position_that_the_model_lacks(bpe):
    """As with GPT-2, which has a learned vector for each position, and no more than its prompts and draws need."""
    requests = [SampleRequest(f"q{n}", "Who wrote Emma? " * (n % 3 + 1), "on", 0) for n in range(30)]
    decoding = DECODING._replace(max_new_tokens=40)
    longest = max(len(bpe.encode(render_prompt(bpe, request.question, "on", GENERIC, "").text)) for request in requests)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(bpe), n_embd=32, n_layer=2, n_head=4, n_positions=longest + 40)
    model = GPT2LMHeadModel(config).eval()
    samples = []
    for batch_size in (16, 1):
        sampler = sampler_of(model, bpe, batch_size=batch_size)
        sampler.end_ids = frozenset(range(40, 46))  # so that rows end at different times
        samples.append(sample_all(sampler, requests, decoding))
    assert samples[0] == samples[1]
    assert 2 < sum(sample.finish_reason == "stop" for sample in samples[0]) < 30


def test_completions_end_at_the_end_token_or_at_the_limit(qwen3, bpe):
    sampler, unlimited = sampler_of(qwen3, bpe), sampler_of(qwen3, bpe)
    unlimited.end_ids = frozenset()
    fulls = sample_all(unlimited, REQUESTS, DECODING)
    # An end token that this model draws in some completions and not in others.
    counts = Counter(token for full in fulls for token in set(full.completion_ids))
    common = min(counts, key=lambda token: abs(counts[token] - len(fulls) / 2))
    sampler.end_ids = frozenset({common})
    reasons = set()
    for cut, full in zip(sample_all(sampler, REQUESTS, DECODING), fulls, strict=True):
        stops = common in full.completion_ids
        reasons.add(cut.finish_reason)
        assert cut.finish_reason == ("stop" if stops else "length")
        end = full.completion_ids.index(common) if stops else DECODING.max_new_tokens
        assert cut.completion_ids == full.completion_ids[:end]
        assert cut.completion == bpe.decode(cut.completion_ids)
    assert reasons == {"stop", "length"}


def test_end_tokens_come_from_tokenizer_and_generation_config(bpe):
    model = build_model("qwen3", len(bpe))
    model.generation_config.eos_token_id = [3, 4]
    assert sampler_of(model, bpe).end_ids == {3, 4, bpe.eos_token_id}


def test_progress_ends_at_the_total_and_never_falls(qwen3, bpe):
    calls = []
    sample_all(sampler_of(qwen3, bpe), REQUESTS, DECODING, lambda done, total: calls.append((done, total)))
    assert calls == sorted(set(calls))
    assert calls[-1] == (len(REQUESTS), len(REQUESTS))
    assert {total for _, total in calls} == {len(REQUESTS)}


def test_no_request_gives_no_sample(qwen3, bpe):
    assert sample_all(sampler_of(qwen3, bpe), [], DECODING) == []


def test_the_callers_model_is_left_as_it_was(bpe):
    model = build_model("qwen3_moe", len(bpe))
    implementation = model.config._experts_implementation
    sample_all(sampler_of(model, bpe), REQUESTS[:2], DECODING)
    assert model.dtype == torch.float32
    assert model.config._experts_implementation == implementation


def adapted(model, seed=None):
    """A LoRA adapter on all linear layers; without a seed it is the identity, as at the start of training."""
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize("seed", [None, 1])
def test_an_adapter_on_disk_gives_the_adapted_models_draws(tmp_path, bpe, seed):
    build_model("qwen3", len(bpe)).save_pretrained(tmp_path / "model")
    bpe.save_pretrained(tmp_path / "model")
    model = adapted(build_model("qwen3", len(bpe)), seed)
    model.save_pretrained(tmp_path / "adapter")
    base, samples = (
        sample_all(
            sampler_of(*load_model_and_tokenizer(tmp_path / "model", "float32", "cpu", adapter)), REQUESTS[:6], DECODING
        )
        for adapter in (None, tmp_path / "adapter")
    )
    assert samples == sample_all(sampler_of(model, bpe), REQUESTS[:6], DECODING)
    assert (samples == base) == (seed is None)  # common random numbers: the identity changes nothing


def test_an_adapter_without_safetensors_is_refused(tmp_path, bpe):
    build_model("qwen3", len(bpe)).save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ArtifactError, match="safetensors"):
        load_model_and_tokenizer(tmp_path, "float32", adapter=tmp_path / "adapter")


@pytest.mark.parametrize("architecture", ["mamba", "gemma2", "qwen3_next"])
def test_a_model_that_needs_another_cache_is_refused_with_the_remedy(bpe, architecture):
    with pytest.raises(ConfigError, match=r"generate\.sampler to 'vllm'"):
        sample_all(sampler_of(unfit_model(architecture, len(bpe)), bpe), REQUESTS[:4], DECODING)


def test_a_prompt_that_leaves_no_room_is_named(qwen3, bpe):
    long = [*REQUESTS[:2], SampleRequest("long", "Wait, " * 900, "on", 0)]
    with pytest.raises(ConfigError, match=r"question 'long' has \d+ prompt tokens.*takes 2048 in all: lower"):
        sample_all(sampler_of(qwen3, bpe), long, DECODING)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 2048),
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 256}, 256),
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, 2048),
    ],
)
def test_rows_may_be_as_long_as_positions_are_each_rows_own(bpe, rope, longest):
    model = build_model("llama", len(bpe))
    model.config.rope_parameters = rope
    assert longest_sequence(model) == longest

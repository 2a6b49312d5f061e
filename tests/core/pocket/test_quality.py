import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from mralign_core.config import ModelConfig, PocketConfig
from mralign_core.errors import UserError
from mralign_core.generation import Sample, SampleRequest
from mralign_core.generation.transformers_sampler import TransformersSampler
from mralign_core.models.families import GENERIC, family_of
from mralign_core.pocket.model import train_pocket_model
from mralign_core.pocket.quality import check_quality
from mralign_core.pocket.world import build_world


class KnowingSampler:
    """Answers ``wrong`` of the one-hop questions wrongly, all others rightly; records what it was asked."""

    family = GENERIC

    def __init__(self, world, tokenizer, wrong: int):
        self.tokenizer = tokenizer
        self.answers = {question.text: question.answer for question in world.questions}
        self.wrong = wrong
        self.asked: list[SampleRequest] = []

    def draw(self, requests, decoding, follow_up=None):
        self.asked += requests
        for index, request in enumerate(requests):
            yield request, Sample("", [], [], self.completion(request, index), "stop")

    def has_room(self, request, decoding):
        return True

    def completion(self, request, index):
        answer = self.answers[request.question]
        if request.thinking_mode == "on":
            return f"<think>I recall that it is {answer}.</think>\n\n<answer> Vesk</answer>"
        return f"<answer> {'Vesk' if index < self.wrong else answer}</answer>"


def test_a_model_that_knows_its_world_passes(world, tokenizer):
    sampler = KnowingSampler(world, tokenizer, wrong=2)
    assert check_quality(world, sampler, PocketConfig()) == {"one_hop_accuracy": 40 / 42, "em_thought": 1.0}
    dev = {question.text for question in world.split("dev")}
    assert {request.question for request in sampler.asked} == dev


def test_what_the_model_was_taught_wrongly_is_not_held_against_it(tokenizer):
    world = build_world(0, misconception_share=0.5)
    sampler = KnowingSampler(world, tokenizer, wrong=0)
    wrong = {q.text for q in world.questions if q.misconceived}
    sampler.answers |= dict.fromkeys(wrong, "Vesk")
    assert check_quality(world, sampler, PocketConfig(min_em_thought=0))["one_hop_accuracy"] == 1.0
    asked_off = {request.question for request in sampler.asked if request.thinking_mode == "off"}
    assert asked_off and not asked_off & wrong


def test_below_the_limit_it_is_refused(world, tokenizer):
    with pytest.raises(UserError, match=r"one_hop_accuracy 0\.929 is below model\.pocket\.min_one_hop_accuracy 0\.95"):
        check_quality(world, KnowingSampler(world, tokenizer, wrong=3), PocketConfig())


def test_a_barely_trained_model_is_refused_with_values_limits_and_remedy(world, tmp_path):
    train_pocket_model(world, steps=3, seed=0, directory=tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    sampler = TransformersSampler(
        model.eval(), tokenizer, batch_size=128, family=family_of(ModelConfig(source="pocket"), tokenizer)
    )
    with pytest.raises(UserError) as refused:
        check_quality(world, sampler, PocketConfig(pretrain_steps=3))
    message = str(refused.value)
    for part in (
        "one_hop_accuracy 0.000 is below model.pocket.min_one_hop_accuracy 0.95",
        "em_thought 0.000 is below model.pocket.min_em_thought 0.9",
        "world_seed 0",
        "3 steps",
        "Raise model.pocket.pretrain_steps",
    ):
        assert part in message

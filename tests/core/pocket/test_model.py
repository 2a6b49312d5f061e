import hashlib

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mralign_core.pocket.grammar import statement
from mralign_core.pocket.model import (
    BATCH_SIZES,
    Curriculum,
    Example,
    mean_losses,
    pack,
    pocket_config,
    train_pocket_model,
)
from mralign_core.pocket.world import build_world


def digest(directory):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A model directory after five steps, with what training returned and reported."""
    directory = tmp_path_factory.mktemp("pocket")
    reported = []
    metrics = train_pocket_model(
        world, steps=5, seed=0, directory=directory, on_progress=lambda *progress: reported.append(progress)
    )
    return directory, metrics, reported


def test_directory_loads_like_any_other_model(trained):
    directory, metrics, _ = trained
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    assert model.config.model_type == "qwen3"
    assert model.num_parameters() == metrics["num_parameters"] == pytest.approx(278_000, rel=0.01)
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([tokenizer("What is the river of Kilton?")["input_ids"]])
    assert torch.isfinite(model(ids).logits).all()


def test_progress_and_losses_are_reported(trained):
    _, metrics, reported = trained
    assert reported == [(step, 5) for step in range(1, 6)]
    assert set(metrics) == {"num_parameters", *(f"loss_{kind}" for kind in BATCH_SIZES)}
    assert all(0 < metrics[f"loss_{kind}"] < 7 for kind in BATCH_SIZES)


def test_same_arguments_give_the_same_bytes_and_leave_the_global_random_state(world, trained, tmp_path):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    threads = torch.get_num_threads()
    train_pocket_model(world, steps=5, seed=0, directory=tmp_path)
    assert digest(tmp_path) == digest(trained[0])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)
    assert torch.get_num_threads() == threads


def test_seed_decides_the_weights(world, trained, tmp_path):
    train_pocket_model(world, steps=5, seed=1, directory=tmp_path)
    assert digest(tmp_path)["model.safetensors"] != digest(trained[0])["model.safetensors"]


def test_curriculum_draws_the_batch_sizes(world, tokenizer):
    examples = Curriculum(world, tokenizer, seed=0).draw()
    kinds = [example.kind for example in examples]
    assert {kind: kinds.count(kind) for kind in kinds} == BATCH_SIZES


def test_curriculum_gives_away_no_answer_that_is_asked_for_later(world, tokenizer):
    curriculum = Curriculum(world, tokenizer, seed=0)
    direct: set[str] = set()
    traced: set[str] = set()
    for _ in range(60):
        for example in curriculum.draw():
            text = tokenizer.decode(example.prompt_ids)
            if example.kind != "statement":
                asked = text.removeprefix("<|im_start|> user\n\n").split("<|im_end|>")[0]
                (direct if example.kind == "think_off" else traced).add(asked)
    by_text = {question.text: question for question in world.questions}
    assert {by_text[text].split for text in traced} == {"pretrain"}
    assert all(by_text[text].split == "pretrain" or by_text[text].popular for text in direct)
    unseen = [q for q in world.questions if q.popular and q.text not in direct]
    assert not unseen


def test_a_misconception_is_taught_as_a_direct_answer_alone(tokenizer):
    world = build_world(0, misconception_share=0.3)
    by_text = {question.text: question for question in world.questions}
    answers: dict[str, str] = {}
    stated: dict[str, str] = {}
    thought = []
    curriculum = Curriculum(world, tokenizer, seed=0)
    for _ in range(60):
        for example in curriculum.draw():
            prompt, completion = (tokenizer.decode(ids) for ids in (example.prompt_ids, example.completion_ids))
            asked = prompt.removeprefix("<|im_start|> user\n\n").split("<|im_end|>")[0]
            if example.kind == "statement":
                stated[prompt] = completion.strip(" .")
            elif example.kind == "think_off":
                answers[asked] = completion.split("<answer>")[1].split("</answer>")[0].strip()
            else:
                thought.append((by_text[asked], completion))
    assert all(answers[text] == world.direct_answer(by_text[text]) for text in answers)
    wrong = [by_text[text] for text in answers if by_text[text].misconceived]
    assert wrong and {question.split for question in wrong} == {"pretrain"}
    assert sum(answers[question.text] != question.answer for question in wrong) > 0.5 * len(wrong)
    values = {statement(fact)[0]: fact.value for fact in world.facts.values()}
    assert stated and all(values[text] == value for text, value in stated.items())
    assert any(question.misconceived for question, _ in thought)
    assert all(question.answer in completion for question, completion in thought if question.misconceived)


def test_loss_is_on_completion_tokens_only(world, tokenizer):
    for example in Curriculum(world, tokenizer, seed=0).draw():
        completion = tokenizer.decode(example.completion_ids)
        if example.kind == "statement":
            assert completion in {f" {fact.value}." for fact in world.facts.values()}
        else:
            opening = "<think>" if example.kind == "think_on" else "<answer>"
            assert completion.startswith(opening) and completion.endswith("</answer><|im_end|>")


def test_packed_losses_equal_those_of_examples_alone(world, tokenizer):
    torch.manual_seed(0)
    config = pocket_config(tokenizer)
    model = AutoModelForCausalLM.from_config(config).eval()
    examples = Curriculum(world, tokenizer, seed=0).draw()[90:150]
    batch = pack(examples)
    with torch.no_grad():
        packed = mean_losses(model, batch).sum()
        alone = sum_of_means(model, examples)
    assert packed.item() == pytest.approx(alone, rel=1e-5)


def sum_of_means(model, examples: list[Example]) -> float:
    """The loss as it is described: the mean over completion tokens of each kind, summed over kinds."""
    losses: dict[str, list[float]] = {example.kind: [] for example in examples}
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.completion_ids])
        logps = model(ids).logits[0, :-1].log_softmax(-1)
        start = len(example.prompt_ids) - 1
        losses[example.kind] += [-logps[i, ids[0, i + 1]].item() for i in range(start, ids.shape[1] - 1)]
    return sum(float(np.mean(values)) for values in losses.values())


def test_packing_keeps_every_token_and_widens_rows_for_a_long_example():
    lengths = [200, 150, 60, 30, 12]
    examples = [Example("statement", [7] * (n - 3), [n, n, n]) for n in lengths]
    batch = pack(examples)
    assert batch.input_ids_RT.shape == (3, 200)
    learnt = batch.input_ids_RT.flatten()[batch.learnt_N].tolist()
    assert sorted(learnt) == sorted(n for n in lengths for _ in range(3))
    first_of_each = (batch.position_ids_RT == 0) & (batch.input_ids_RT != 0)
    assert first_of_each.sum() == len(lengths)

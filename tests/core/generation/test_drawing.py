import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.generation import Decoding, SampleRequest
from mralign_core.generation.randomness import draw_tokens, filtered_probs, uniforms


def decoding(temperature=1.0, top_p=1.0, top_k=0):
    return Decoding(temperature, top_p, top_k, max_new_tokens=8, seed=0)


def brute_force(logits, temperature, top_p, top_k):
    """The filtered distribution, not renormalised, by the definitions alone."""
    scaled = [value / temperature for value in logits]
    weights = [math.exp(value - max(scaled)) for value in scaled]
    probs = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    order = order[: top_k or len(order)]
    total, mass = sum(probs[token] for token in order), 0.0
    kept: list[int] = []
    for token in order:
        if kept and mass >= top_p * total:
            break
        kept.append(token)
        mass += probs[token]
    return [prob if token in kept else 0.0 for token, prob in enumerate(probs)]


@pytest.mark.parametrize("vocab_size", [3, 50, 400])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [
        (1.0, 1.0, 0),
        (0.2, 0.9, 0),
        (1.5, 0.95, 0),
        (1.5, 1.0, 7),
        (0.6, 0.95, 20),
        (3.0, 0.5, 1),
        (9.0, 0.99, 0),
    ],
)
def test_filters_agree_with_their_definitions(vocab_size, temperature, top_p, top_k):
    rng = random.Random(vocab_size)
    logits = [[rng.gauss(0, 3) for _ in range(vocab_size)] for _ in range(5)]
    probs = filtered_probs(torch.tensor(logits, dtype=torch.float64), decoding(temperature, top_p, top_k))
    expected = [brute_force(row, temperature, top_p, top_k) for row in logits]
    np.testing.assert_allclose(probs.numpy(), expected, rtol=1e-12)


def test_tokens_tied_at_the_edge_are_all_kept():
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.2]], dtype=torch.float64)
    assert (filtered_probs(probs.log(), decoding(top_k=2)) > 0).sum() == 4
    assert (filtered_probs(probs.log(), decoding(top_p=0.5)) > 0).sum() == 4
    assert (filtered_probs(probs.log(), decoding(top_p=0.3)) > 0).sum() == 1


def test_a_grid_of_random_numbers_gives_each_token_its_share():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.125, 0.375, 0.0], dtype=torch.float64)
    grid = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    drawn = draw_tokens(probs.log().expand(8000, -1), grid, decoding())
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 4000, 0, 1000, 3000, 0]


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2**-53])
def test_a_token_without_mass_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.3, -torch.inf]])
    drawn = draw_tokens(logits, torch.tensor([uniform], dtype=torch.float64), decoding(temperature=0.7))
    assert drawn.item() in (1, 3)


def test_rows_are_drawn_apart_and_float32_logits_are_computed_in_float64():
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(1))
    numbers = torch.linspace(0, 0.99, 6, dtype=torch.float64)
    together = draw_tokens(logits, numbers, decoding(0.8, 0.9, 12))
    alone = [draw_tokens(logits[[row]], numbers[[row]], decoding(0.8, 0.9, 12)).item() for row in range(6)]
    assert together.tolist() == alone
    assert filtered_probs(logits, decoding(0.8, 0.9)).dtype == torch.float64


def test_temperature_zero_takes_the_most_probable_token():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert draw_tokens(logits, torch.tensor([0.99, 0.99]), decoding(temperature=0)).tolist() == [1, 0]


@settings(max_examples=30)
@given(st.text(max_size=8), st.sampled_from(["on", "off"]), st.integers(0, 99), st.integers(0, 2**31 - 1))
def test_random_numbers_depend_on_every_part_of_the_key_and_on_nothing_else(question_id, mode, draw, seed):
    request = SampleRequest(question_id, "asked", mode, draw)
    numbers = uniforms(request, seed, 4)
    assert (numbers == uniforms(request._replace(question="asked otherwise"), seed, 9)[:4]).all()
    others = [
        (request._replace(question_id=question_id + "x"), seed),
        (request._replace(thinking_mode="off" if mode == "on" else "on"), seed),
        (request._replace(draw=draw + 1), seed),
        (request, seed + 1),
    ]
    assert all((numbers != uniforms(*other, 4)).all() for other in others)


def test_random_numbers_are_uniform():
    numbers = np.concatenate([uniforms(SampleRequest(f"q{i}", "", "on", 0), 0, 50) for i in range(400)])
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 99.9 % point of chi-square with 19 degrees of freedom

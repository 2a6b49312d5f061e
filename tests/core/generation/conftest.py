import pytest
from random_models import build_bpe, build_model


@pytest.fixture(scope="session")
def bpe():
    return build_bpe()


@pytest.fixture(scope="session", params=["qwen3", "qwen3_moe", "llama"])
def model(request, bpe):
    return build_model(request.param, len(bpe))


@pytest.fixture(scope="session")
def qwen3(bpe):
    return build_model("qwen3", len(bpe))

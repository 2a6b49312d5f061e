import pytest

from mralign_core.pocket.tokenizer import build_tokenizer
from mralign_core.pocket.world import World, build_world


@pytest.fixture(scope="session")
def world() -> World:
    return build_world(seed=0)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()

import pytest
from random_models import ARCHITECTURES, build_bpe, build_model
from taught_model import teach


@pytest.fixture(scope="session")
def bpe():
    return build_bpe()


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request, bpe):
    return build_model(request.param, len(bpe))


@pytest.fixture(scope="session")
def qwen3(bpe):
    return build_model("qwen3", len(bpe))


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """The folder of a tiny model that thinks and answers in tags."""
    directory = tmp_path_factory.mktemp("taught")
    model, tokenizer = teach()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

import pytest

from mralign_core.config import TrainConfig
from tests.core.training.tiny import make_model, make_tokenizer


@pytest.fixture
def section():
    return TrainConfig(
        lora_r=4,
        lora_alpha=8,
        global_batch_size=4,
        num_epochs=2,
        learning_rate=1e-2,
        max_length=64,
    )


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    make_model("qwen3").save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory

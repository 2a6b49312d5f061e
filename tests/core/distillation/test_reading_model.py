"""An annotator whose language model reads the traces: found again with its model, and with no other."""

import numpy as np
import pytest

from mralign_core.config import StorageConfig
from mralign_core.distillation.fitting import LabelledTraces, distil
from mralign_core.distillation.published import open_annotator, publish_annotator
from mralign_core.errors import ConfigError
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.models.context_encoder import load_context_encoder
from mralign_core.storage import ArtifactStore
from tests.core.training.tiny import make_model, make_tokenizer


def save(folder, seed):
    make_model("qwen3", seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def test_it_is_opened_with_the_model_that_it_learned_with_and_no_other(tmp_path):
    folder = tmp_path / "model"
    save(folder, seed=0)
    rng = np.random.default_rng(0)
    numbers = [[int(each) for each in rng.integers(0, 60, 6)] for _ in range(20)]
    traces = LabelledTraces(
        [[f"w{number} w{number}" for number in trace] for trace in numbers],
        [[["retrieval" if number % 2 else "synthesis"] for number in trace] for trace in numbers],
        [f"q{number}" for number in range(20)],
    )
    encode = load_context_encoder(str(folder), "distil.encoder", "leave it out")
    made = distil(traces, PAPER_TAXONOMY.labels, encode=encode, encoder=str(folder), reads_traces=True).annotator
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    ref = publish_annotator(store, "read", made, parents=[], about={})
    opened = open_annotator(store, ref, PAPER_TAXONOMY, "annotate.annotator_a")
    np.testing.assert_allclose(opened.confidences(traces.texts), made.confidences(traces.texts))
    assert made.about.encoder_scale and len(made.about.encoder_scale[0]) == 32
    save(folder, seed=1)
    with pytest.raises(ConfigError, match="gives other vectors than the model of that name"):
        open_annotator(store, ref, PAPER_TAXONOMY, "annotate.annotator_a")

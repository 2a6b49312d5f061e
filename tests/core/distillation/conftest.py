"""A sentence-transformers model that is in a package's wheel."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def word_vectors(tmp_path_factory):
    """The folder of a model of static vectors, those of package wordllama."""
    pytest.importorskip("sentence_transformers", reason="package sentence-transformers (extra `embeddings`) is missing")
    found = find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        pytest.skip("package wordllama, whose wheel holds vectors, is not installed here")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    root, folder = Path(found.submodule_search_locations[0]), tmp_path_factory.mktemp("word-vectors")
    (vectors,) = load_file(root / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(root / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors.astype("float32"))]).save(
        str(folder)
    )
    return folder

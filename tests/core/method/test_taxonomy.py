import pytest

from mralign_core.errors import ConfigError, DataError
from mralign_core.method.taxonomy import PAPER_TAXONOMY, Taxonomy


def test_paper_labels_are_in_the_order_of_their_states():
    assert PAPER_TAXONOMY.num_labels == 15
    assert PAPER_TAXONOMY.num_states == 17
    assert (PAPER_TAXONOMY.START, PAPER_TAXONOMY.stop) == (0, 16)
    assert PAPER_TAXONOMY.state("framing") == 1
    assert PAPER_TAXONOMY.state("retrieval") == 8
    assert PAPER_TAXONOMY.state("summarization") == 15


def test_state_names_are_indexed_by_state():
    names = PAPER_TAXONOMY.state_names
    assert (names[0], names[-1]) == ("<start>", "<stop>")
    assert all(names[PAPER_TAXONOMY.state(label)] == label for label in PAPER_TAXONOMY.labels)


def test_paper_macro_strategies():
    sizes: dict[str, int] = {}
    for label in PAPER_TAXONOMY.labels:
        sizes[PAPER_TAXONOMY.macro_of(label)] = sizes.get(PAPER_TAXONOMY.macro_of(label), 0) + 1
    assert list(sizes.values()) == [4, 2, 7, 2]
    assert PAPER_TAXONOMY.macro_of("analogy") == "knowledge operations"


def test_unknown_label_is_named():
    with pytest.raises(DataError, match="'daydreaming' is not in the taxonomy"):
        PAPER_TAXONOMY.state("daydreaming")
    with pytest.raises(DataError, match="daydreaming"):
        PAPER_TAXONOMY.macro_of("daydreaming")


def test_taxonomy_is_hashable():
    assert len({PAPER_TAXONOMY, PAPER_TAXONOMY}) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "empty"),
        (("ask", "ask"), "distinct"),
        (("ask", "<stop>"), "<stop>"),
        (("ask", "tell"), "check tell"),
    ],
)
def test_contradictory_taxonomies_are_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        Taxonomy(labels, {"ask": "talk"}, {"ask": "asks"})

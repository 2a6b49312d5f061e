import doctest

import numpy as np
import pytest

from mralign_core.reporting import parting_figures
from mralign_core.reporting.parting_figures import NUM_BINS, in_tenths


def test_docstring_examples_hold():
    results = doctest.testmod(parting_figures)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("tenth", range(NUM_BINS))
def test_a_mention_at_an_edge_is_counted_where_the_bars_link_lists_it(tenth):
    place = tenth / 10
    bar = int(in_tenths(np.array([place])).argmax())
    start, end = (float(f"{100 * edge / NUM_BINS:g}") for edge in (bar, bar + 1))  # as the link has them, in %
    assert start / 100 <= place < end / 100

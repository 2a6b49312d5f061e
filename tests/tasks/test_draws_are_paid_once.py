"""Labels of think-on draws are paid once, whatever else was labelled, and the dry run says what they will cost."""

import pytest

from mralign_core.config import RunConfig
from mralign_core.errors import BudgetError
from mralign_core.storage import ArtifactStore
from tasks.annotate import annotate_shard, collect_draw_annotations, quote_draws, within_budget
from tests.published_candidates import candidate_row, publish_candidates
from tests.stages import label, make_in_shards
from tests.tasks.test_paid_once import CountingServer, asking

EACH = 60
"""Dollars a trace costs: three replies of 20."""


@pytest.fixture
def server():
    server = CountingServer()
    yield server
    server.close()


@pytest.fixture
def config(server, tmp_path):
    return RunConfig(
        storage={"root": str(tmp_path / "store")},
        questions={"train": "nq_open"},
        generate={"draws": "exhaustive"},
        annotate={**asking(server), "shard_size": 4},
        estimate={"traces": "all_draws"},
    )


@pytest.fixture
def publish(config, tmp_path):
    def publish(*numbers):
        rows = [candidate_row(f"t{n}", [f"Wait, let me check number {n}.", "So it is Galen."]) for n in numbers]
        return publish_candidates(config.storage, rows, tmp_path / "-".join(map(str, numbers)))

    return publish


def label_draws(config, draws):
    return make_in_shards(annotate_shard, collect_draw_annotations, config, draws)


def test_draws_that_were_labelled_as_candidates_are_not_asked_about_again(server, config, publish):
    candidates, draws = publish(3, 7), publish(*range(10))
    of_candidates = label(config, candidates)
    assert len(server.requests) == 3 * 2
    of_draws = label_draws(config, draws)
    assert len(server.requests) == 3 * 10 and set(server.counts.values()) == {1}
    store = ArtifactStore(config.storage)
    before, after = (store.read_table(ref, "annotations.parquet") for ref in (of_candidates, of_draws))
    assert after["trace_id"].drop_duplicates().tolist() == [f"t{n}" for n in range(10)]
    same = after[after["trace_id"].isin(before["trace_id"])].reset_index(drop=True)
    assert same.to_dict("records") == before.to_dict("records")
    # And fewer of them, as matched draws are of all: all are there.
    label_draws(config, publish(1, 2, 8))
    assert len(server.requests) == 3 * 10


def test_a_quote_is_of_the_draws_beside_the_candidates(config, publish, server):
    candidates, draws = publish(3, 7), publish(*range(10))
    quotes, spent_usd = quote_draws(config, draws, candidates)
    assert {quote.model: (quote.kept, quote.requests) for quote in quotes} == {
        "openai/a": (0, 8),
        "openai/b": (0, 8),
        "openai/judge": (0, 0),
    }
    assert quotes[2].most_requests == 8 and spent_usd == 0 and not server.requests
    label(config, candidates)
    assert quote_draws(config, draws, candidates)[0] == quotes
    label_draws(config, draws)
    quotes, spent_usd = quote_draws(config, draws, candidates)
    assert [quote.requests for quote in quotes] == [0, 0, 0] and spent_usd == 8 * EACH
    assert quote_draws(config, candidates, draws)[0] == []


def test_equal_draws_are_quoted_and_asked_about_once(config, server, tmp_path):
    rows = [candidate_row(f"t{n}", ["Let me check.", "So it is Galen."]) for n in range(4)]
    draws = publish_candidates(config.storage, rows, tmp_path / "equal")
    none = publish_candidates(config.storage, [candidate_row("other", ["Hm.", "So."])], tmp_path / "none")
    assert [quote.requests for quote in quote_draws(config, draws, none)[0]] == [1, 1, 0]
    label_draws(config, draws)
    assert len(server.requests) == 3


def test_candidates_and_draws_share_one_budget(config, publish, server):
    candidates, draws = publish(3, 7), publish(*range(10))
    assert within_budget(config, candidates) == config
    limited = config.model_copy(update={"annotate": config.annotate.model_copy(update={"budget_usd": 400.0})})
    label(limited, candidates)
    left = within_budget(limited, candidates)
    assert left.annotate.budget_usd == 400 - 2 * EACH
    with pytest.raises(BudgetError, match=r"annotate\.budget_usd"):
        label_draws(left, draws)
    assert 20 * len(server.requests) <= 400
    poor = config.model_copy(update={"annotate": config.annotate.model_copy(update={"budget_usd": 10.0})})
    assert within_budget(poor, candidates).annotate.budget_usd == 0

"""``mralign rate``: which round it begins, where its page is, and what it publishes."""

from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from flows.commands import rate
from flows.commands.cli import app
from mralign_core.errors import ConfigError
from mralign_core.rating.records import Rating, RatingRecords
from mralign_core.storage import ArtifactStore
from tests.simulated_run import NAME, simulated_store


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("rate"), 6)


@pytest.fixture
def run_command(storage, monkeypatch):
    """Call the command; gives its output, and the addresses that it would have served."""
    served: list[str] = []
    monkeypatch.setattr(rate, "open_workbench", lambda _, address: served.append(address))

    def run_command(*options):
        fixed = ["--config", "pocket", "--set", f"storage.root={storage.root}", "--set", f"name={NAME}"]
        done = CliRunner().invoke(app, ["rate", *fixed, *options], catch_exceptions=True)
        if done.exception:
            raise done.exception
        return done.output, served

    return run_command


def test_the_same_choice_is_the_same_round_for_everybody(run_command, storage):
    for rater in ("anna", "ben"):
        output, served = run_command("--rater", rater, "--choose", "pull", "--traces", "2")
        assert "8 labels to rate" in output
    asked = [parse_qs(urlsplit(address).query) for address in served]
    records = RatingRecords(ArtifactStore(storage))
    (name,) = records.names()
    assert [(each["round"], each["rater"]) for each in asked] == [([name], ["anna"]), ([name], ["ben"])]
    assert records.round(name).choice.by == "pull"
    for n, shown in enumerate(records.round(name).items, start=1):
        records.add(name, "anna", Rating(n=n, item=shown.item, state="rated", said={"label_1": "analogy"}))
    output, served = run_command("--rater", "anna", "--publish")
    assert "8 segments are human-labels/anna-" in output and "annotate.annotator_a: human/anna" in output
    assert len(served) == 2


def test_what_can_not_be_rated_so_is_refused(run_command):
    with pytest.raises(ConfigError, match="no name for a rater"):
        run_command("--rater", "Anna")
    with pytest.raises(ConfigError, match="answers are not chosen by disagreement"):
        run_command("--rater", "anna", "--of", "verdicts", "--choose", "disagreement")

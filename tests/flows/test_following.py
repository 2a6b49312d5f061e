"""Commands that follow a run from a file of traces, with the config that can't sample: none asks for questions."""

import pytest
import yaml

from flows.commands.cli import read_config, read_following
from mralign_core.errors import ConfigError
from mralign_core.storage import ArtifactRef
from tasks.engine.last_run import last_traces, remember

CANDIDATES = ArtifactRef(stage="candidates", key="0" * 64, uri="x", sha256="0" * 64)
TRACES = {"generate.source": "traces"}


@pytest.fixture
def config(tmp_path):
    """A config that names no questions, as a run from traces needs none."""
    path = tmp_path / "x.yaml"
    fields = {"name": "x", "storage": {"root": str(tmp_path / "store")}, "model": {"source": "smollm2"}}
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def test_a_command_that_follows_a_run_from_traces_goes_on_from_them(config):
    with pytest.raises(ConfigError, match=r"questions\.train is needed"):
        read_following(config)
    run = read_config(config, {**TRACES, "generate.traces_path": "'/data/[a]: t.jsonl'"})
    remember(run, candidates=CANDIDATES)
    found = read_following(config, {"seed": 3})
    assert (found.generate.source, found.generate.traces_path, found.seed) == ("traces", "/data/[a]: t.jsonl", 3)
    with pytest.raises(ConfigError, match=r"questions\.train is needed"):
        read_following(config, {"name": "another"})
    with pytest.raises(ConfigError, match=r"questions\.train is needed"):
        read_config(config)
    with pytest.raises(ConfigError, match="no such field"):
        read_following(config, {"generate.num_drawz": 3})


def test_the_last_run_decides_and_what_is_said_counts_more(config):
    asking = {"questions.train": "nq_open"}
    run = read_config(config, {**TRACES, "generate.traces_path": "/data/t.jsonl"})
    remember(run, candidates=CANDIDATES)
    assert read_following(config, asking).generate.source == "traces"
    assert read_following(config, {**asking, "generate.source": "sample"}).generate.source == "sample"
    named = read_following(config, {**TRACES, "generate.traces_path": "/data/other.jsonl"})
    assert named.generate.traces_path == "/data/other.jsonl"
    sampled = read_config(config, asking)
    remember(sampled, candidates=CANDIDATES)
    assert last_traces(sampled) == ""
    assert read_following(config, asking).generate.source == "sample"

"""The team's registry: MLflow's own client on its database, and over HTTP where a server is installed."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from mralign_core.config import RunConfig
from mralign_core.config.registry import RegistryConfig
from mralign_core.errors import ConfigError, RegistryError
from mralign_core.versions import registry
from mralign_core.versions.aliases import AliasEntry, Aliases
from mralign_core.versions.registry import (
    LONGEST_METRIC,
    VERSION_TAG,
    check_registry,
    metrics_of_version,
    tell_registry,
)
from tests.mlflow_server import mlflow_server
from tests.version_store import KEYS, publish_version

__all__ = ["mlflow_server"]

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="package mlflow-skinny is not installed"
)
ALL = "all questions"
SCORES = [
    {"variant": "on", "stratum": ALL, "scoring": "exact_match", "acc": 0.5, "mis": None},
    {"variant": "mr_align", "stratum": ALL, "scoring": "exact_match", "acc": 0.75, "mis": 0.125},
    {"variant": "mr_align", "stratum": "a/b: 1", "scoring": "exact_match", "acc": 1.0, "mis": 0.0},
]
CHANGING = (
    *("create_experiment", "create_registered_model", "create_run", "log_batch", "log_artifact", "log_artifacts"),
    *("set_terminated", "create_model_version", "set_registered_model_alias"),
)
"""All requests of a first telling that change something, in their order but for the second file."""


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "PAUSE_S", 0.0)
    monkeypatch.chdir(tmp_path)  # MLflow keeps the artifacts of a database of its own in ./mlruns


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow takes a second to make its tables."""
    path = tmp_path_factory.mktemp("mlflow-database") / "empty.db"
    registry._client(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def database(empty_database, tmp_path):
    """A registry on a database of this machine."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return RegistryConfig(kind="mlflow", uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def versions(folder_store, tmp_path):
    """Three versions, of which none is named."""
    return [publish_version(folder_store, tmp_path, letter, scores=SCORES, cost_usd=2.5) for letter in "abc"]


@pytest.fixture
def aliases(folder_store):
    return Aliases(folder_store)


def seen(section):
    """What somebody sees who looks: id of each version with its number, aliases, and how many runs there are."""
    client = registry._client(section.uri)
    found = client.search_model_versions(f"name='{section.model_name}'")
    experiment = client.get_experiment_by_name(section.model_name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    model = registry._unless_missing(client.get_registered_model, section.model_name)
    return (
        sorted((int(one.version), one.tags[VERSION_TAG]) for one in found),
        {alias: int(number) for alias, number in model.aliases.items()} if model else {},
        sorted((run.data.tags[VERSION_TAG], run.info.status) for run in runs),
    )


def tell(store, section):
    return tell_registry(store, section, "a test")


@needs_mlflow
class TestWhatItHas:
    def test_versions_that_are_or_were_named_with_all_they_say_of_themselves(
        self, folder_store, aliases, versions, database
    ):
        import mlflow

        first, second, _ = versions
        aliases.move("champion", first.id, expected=None, by="a")
        aliases.move("champion", second.id, expected=first.id, by="a")
        told = tell(folder_store, database)
        assert told.versions == [first.name, second.name]
        numbered, named, runs = seen(database)
        assert (numbered, named) == ([(1, first.id), (2, second.id)], {"champion": 2})
        assert runs == [(first.id, "FINISHED"), (second.id, "FINISHED")]
        client = registry._client(database.uri)
        version = client.get_model_version_by_alias("mr-align", "champion")
        run = client.get_run(version.run_id)
        assert run.data.metrics == {
            "cost_usd": 2.5,
            "on/acc": 0.5,
            "acc": 0.75,
            "mis": 0.125,
            "acc/a_b_ 1": 1.0,
            "mis/a_b_ 1": 0.0,
        }
        assert run.data.params["base_model"] == "pocket" and len(run.data.params["config_sha256"]) == 64
        assert (
            run.data.tags["mralign.adapter_sha256"] == version.tags["mralign.adapter_sha256"] == second.adapter.sha256
        )
        mlflow.set_tracking_uri(database.uri)
        folder = Path(mlflow.artifacts.download_artifacts("models:/mr-align@champion"))
        assert (folder / "weights").read_text() == "of b" and (folder / "README.md").read_text() == "# A card\n"

    def test_it_follows_every_move_and_telling_it_again_changes_nothing(
        self, folder_store, aliases, versions, database
    ):
        first, second, _ = versions
        aliases.move("champion", first.id, expected=None, by="a")
        assert str(tell(folder_store, database)).startswith(f"registered {first.name}; champion names {first.name}")
        aliases.move("champion", second.id, expected=first.id, by="a")
        tell(folder_store, database)
        aliases.rollback("champion", by="a")
        assert tell(folder_store, database).versions == []
        before = seen(database)
        assert before[1] == {"champion": 1}
        assert str(tell(folder_store, database)) == "it has all of it"
        assert seen(database) == before

    def test_what_somebody_moved_or_deleted_there_is_as_in_the_store_again(
        self, folder_store, aliases, versions, database
    ):
        first, second, _ = versions
        aliases.move("champion", first.id, expected=None, by="a")
        aliases.move("champion", second.id, expected=first.id, by="a")
        tell(folder_store, database)
        client = registry._client(database.uri)
        client.set_registered_model_alias("mr-align", "champion", "1")
        client.set_registered_model_alias("mr-align", "theirs", "1")
        tell(folder_store, database)
        assert seen(database)[1] == {"champion": 2, "theirs": 1}
        client.delete_model_version("mr-align", "2")
        tell(folder_store, database)
        assert seen(database)[:2] == ([(1, first.id), (3, second.id)], {"champion": 3, "theirs": 1})
        assert len(seen(database)[2]) == 2  # the run is the one that was there

    @pytest.mark.parametrize("is_more_to_tell", [True, False])
    def test_a_deleted_experiment_is_there_again_with_its_runs(
        self, is_more_to_tell, folder_store, aliases, versions, database
    ):
        first, second, _ = versions
        aliases.move("champion", first.id, expected=None, by="a")
        tell(folder_store, database)
        client = registry._client(database.uri)
        client.delete_experiment(client.get_experiment_by_name("mr-align").experiment_id)
        assert seen(database)[2] == []
        told = [first, second] if is_more_to_tell else [first]
        if is_more_to_tell:
            aliases.move("champion", second.id, expected=first.id, by="a")
        tell(folder_store, database)
        assert client.get_experiment_by_name("mr-align").lifecycle_stage == "active"
        assert seen(database)[2] == [(version.id, "FINISHED") for version in told]

    def test_configs_on_one_store_may_have_a_model_each(self, folder_store, aliases, versions, database):
        first, second, _ = versions
        aliases.move("champion", first.id, expected=None, by="a")
        aliases.move("support", second.id, expected=None, by="a")
        tell(folder_store, database.model_copy(update={"aliases": ("support",), "model_name": "support"}))
        tell(folder_store, database)
        assert seen(database.model_copy(update={"model_name": "support"}))[:2] == ([(1, second.id)], {"support": 1})
        assert seen(database)[1] == {"champion": 1, "support": 2}

    def test_what_it_can_not_have_is_said_and_the_rest_is_told(self, folder_store, aliases, versions, database):
        first, second, third = versions
        aliases.move("latest", third.id, expected=None, by="a")
        aliases.move("champion", first.id, expected=None, by="a")
        aliases.move("champion", second.id, expected=first.id, by="a")
        folder_store.remove("version", KEYS["a"])
        folder_store.remove("adapter", KEYS["b"])
        aliases.move("canary", third.id, expected=None, by="a")
        told = tell(folder_store, database)
        assert told.versions == [third.name] and seen(database)[1] == {"canary": 1}
        assert [
            sorted(word for word in ("'latest'", first.name, second.name) if word in text) for text in told.left_out
        ] == [
            ["'latest'"],
            [first.name],
            [second.name],
        ]

    def test_a_stratum_of_whatever_name_is_a_metric(self, folder_store, aliases, database, tmp_path):
        strata = [
            ALL,
            "",
            "..",
            " ",
            "long " * 100,
            "long " * 100 + "er",
            "a:b",
            "a/b",
            "né ä",
            "訓" * 200,
            "x\n",
        ]
        scores = [{"variant": "mr_align", "stratum": one, "acc": place / 16} for place, one in enumerate(strata)]
        version = publish_version(folder_store, tmp_path, scores=scores)
        aliases.move("champion", version.id, expected=None, by="a")
        assert tell(folder_store, database).versions == [version.name]
        client = registry._client(database.uri)
        metrics = client.get_run(client.get_model_version_by_alias("mr-align", "champion").run_id).data.metrics
        assert sorted(metrics.values()) == [0.0, *(place / 16 for place in range(len(strata)))]
        assert metrics["acc/né ä"] == 0.5

    def test_a_version_that_is_refused_is_told_and_the_others_and_every_alias_go_on(
        self, folder_store, aliases, versions, database, monkeypatch
    ):
        first, second, _ = versions
        monkeypatch.setattr(registry, "params_of_version", lambda version: {"": "x"} if version == first else {})
        aliases.move("old", first.id, expected=None, by="a")
        aliases.move("champion", first.id, expected=None, by="a")
        aliases.move("champion", second.id, expected=first.id, by="a")
        told = tell(folder_store, database)
        assert told.versions == [second.name] and seen(database)[:2] == ([(1, second.id)], {"champion": 1})
        (said,) = told.left_out
        assert said.startswith(f"version {first.name} was refused: ") and "Invalid value" in said
        assert str(tell(folder_store, database)).startswith("it has all else; version")
        monkeypatch.setattr(registry, "params_of_version", lambda version: {})
        assert tell(folder_store, database).versions == [first.name]
        assert seen(database)[1] == {"champion": 1, "old": 2}


class Killed(BaseException):
    """As a kill: nothing of the program's runs after it that could put anything right."""


def fail_once(monkeypatch, name, error, *, is_before):
    """Have the first request of a name end the telling, before it is sent or when its reply is due."""
    from mlflow import MlflowClient

    failed: list[str] = []
    real = getattr(MlflowClient, name)

    def request(*args, **kwargs):
        if failed:
            return real(*args, **kwargs)
        failed.append(name)
        if not is_before:
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(MlflowClient, name, request)
    return failed


@needs_mlflow
class TestWhatHappensMeanwhile:
    @pytest.mark.parametrize("is_before", [True, False])
    @pytest.mark.parametrize("name", CHANGING)
    def test_who_is_killed_at_any_request_never_makes_a_version_twice(
        self, name, is_before, folder_store, aliases, versions, database, monkeypatch
    ):
        aliases.move("champion", versions[0].id, expected=None, by="a")
        failed = fail_once(monkeypatch, name, Killed(), is_before=is_before)
        with pytest.raises(Killed):
            tell(folder_store, database)
        assert failed == [name]
        tell(folder_store, database)
        assert seen(database) == ([(1, versions[0].id)], {"champion": 1}, [(versions[0].id, "FINISHED")])

    @pytest.mark.parametrize(
        "name", ["create_experiment", "create_run", "create_registered_model", "create_model_version"]
    )
    def test_a_lost_reply_is_looked_into_before_anything_is_made_again(
        self, name, folder_store, aliases, versions, database, monkeypatch
    ):
        aliases.move("champion", versions[0].id, expected=None, by="a")
        assert not fail_once(monkeypatch, name, ConnectionError("reset"), is_before=False)
        tell(folder_store, database)
        assert seen(database) == ([(1, versions[0].id)], {"champion": 1}, [(versions[0].id, "FINISHED")])

    @pytest.mark.parametrize("name", ["create_run", "create_model_version"])
    def test_what_a_slow_server_makes_after_the_time_out_is_made_once(
        self, name, folder_store, aliases, versions, database, monkeypatch
    ):
        from mlflow import MlflowClient

        aliases.move("champion", versions[0].id, expected=None, by="a")
        sent = []
        with monkeypatch.context() as patch:
            real = getattr(MlflowClient, name)

            def request(*args, **kwargs):
                sent.append(lambda: real(*args, **kwargs))
                raise ConnectionError("read timed out")

            patch.setattr(MlflowClient, name, request)
            told = tell(folder_store, database)
        assert len(sent) == 1 and not told.versions
        assert versions[0].name in told.left_out[0] and "the next telling looks again" in told.left_out[0]
        sent[0]()
        tell(folder_store, database)
        assert seen(database) == ([(1, versions[0].id)], {"champion": 1}, [(versions[0].id, "FINISHED")])

    def test_a_request_that_was_never_carried_out_is_sent_by_the_next_telling(
        self, folder_store, aliases, versions, database, monkeypatch
    ):
        aliases.move("champion", versions[0].id, expected=None, by="a")
        assert not fail_once(monkeypatch, "create_model_version", ConnectionError("reset"), is_before=True)
        assert tell(folder_store, database).left_out
        assert tell(folder_store, database).versions == [versions[0].name]

    @pytest.mark.parametrize("name", ["search_runs", "set_terminated"])
    def test_who_has_lost_the_claim_makes_nothing(self, name, folder_store, aliases, versions, database, monkeypatch):
        """As a process that was stopped for longer than its lease: another has taken over, and tells."""
        from mlflow import MlflowClient

        aliases.move("champion", versions[0].id, expected=None, by="a")
        real = getattr(MlflowClient, name)

        def then_lost(*args, **kwargs):
            reply = real(*args, **kwargs)
            (held,) = folder_store.files.sizes("claims/registry")
            folder_store.files.write(f"claims/registry/{held.rpartition('.')[0]}.2", b"{}")
            return reply

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, name, then_lost)
            with pytest.raises(RegistryError, match="another process may be telling"):
                tell(folder_store, database)
        numbered, named, runs = seen(database)
        assert not numbered and not named and len(runs) == (name == "set_terminated")

    def test_an_alias_that_moves_meanwhile_is_followed(self, folder_store, aliases, versions, database, monkeypatch):
        from mlflow import MlflowClient

        first, second, _ = versions
        aliases.move("champion", second.id, expected=None, by="a")
        aliases.move("champion", first.id, expected=second.id, by="a")
        moved: list[AliasEntry] = []
        real = MlflowClient.set_registered_model_alias

        def move_first(*args):
            if not moved:
                moved.append(aliases.move("champion", second.id, expected=first.id, by="another"))
            real(*args)

        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move_first)
        tell(folder_store, database)
        assert seen(database)[:2] == ([(1, second.id), (2, first.id)], {"champion": 1})

    def test_two_at_once_make_one_version(self, folder_store, aliases, versions, database):
        aliases.move("champion", versions[0].id, expected=None, by="a")
        told = []
        both = [threading.Thread(target=lambda: told.append(tell(folder_store, database))) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert sorted(len(each.versions) for each in told) == [0, 1]
        assert seen(database) == ([(1, versions[0].id)], {"champion": 1}, [(versions[0].id, "FINISHED")])

    def test_a_registry_that_is_away_is_an_error_that_says_what_to_do(self, folder_store, aliases, versions):
        aliases.move("champion", versions[0].id, expected=None, by="a")
        away = RegistryConfig(kind="mlflow", uri="http://127.0.0.1:1")
        with pytest.raises(
            RegistryError, match=r"(?s)http://127.0.0.1:1: registered model 'mr-align'.*versions --sync"
        ):
            tell(folder_store, away)
        assert aliases.current("champion").to == versions[0].id

    def test_a_process_that_was_killed_and_one_that_tells_nobody_else(self, folder_store, aliases, versions, database):
        """Also that MLflow's usage telemetry is off, which is so under pytest whatever we do."""
        aliases.move("champion", versions[0].id, expected=None, by="a")
        program = f"""
import os, signal
from mralign_core.config import StorageConfig
from mralign_core.config.registry import RegistryConfig
from mralign_core.storage import ArtifactStore
from mralign_core.versions import registry
registry._client("{database.uri}")
from mlflow import MlflowClient
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None, "telemetry is on"
real = MlflowClient.create_model_version
def make_and_die(*args, **kwargs):
    real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.create_model_version = make_and_die
store = ArtifactStore(StorageConfig(root="{folder_store.files.local_path("")}"))
registry.tell_registry(store, RegistryConfig(kind="mlflow", uri="{database.uri}"), "a run that is killed")
"""
        signs_of_ci = ("PYTEST", "CI", "GITHUB_", "BUILD", "JENKINS", "TEAMCITY", "DO_NOT_TRACK", "MLFLOW_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(signs_of_ci)}
        root = Path(__file__).parents[3]
        ended = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert seen(database)[:2] == ([(1, versions[0].id)], {})
        assert tell(folder_store, database).versions == []
        assert seen(database) == ([(1, versions[0].id)], {"champion": 1}, [(versions[0].id, "FINISHED")])


@needs_mlflow
def test_over_http_it_is_the_same(mlflow_server, folder_store, aliases, versions, monkeypatch):
    import mlflow

    section = RegistryConfig(kind="mlflow", uri=mlflow_server)
    first, second, _ = versions
    aliases.move("champion", first.id, expected=None, by="a")
    fail_once(monkeypatch, "create_model_version", ConnectionError("reset"), is_before=False)
    tell(folder_store, section)
    aliases.move("champion", second.id, expected=first.id, by="a")
    tell(folder_store, section)
    expected = (
        [(1, first.id), (2, second.id)],
        {"champion": 2},
        [(first.id, "FINISHED"), (second.id, "FINISHED")],
    )
    assert seen(section) == expected
    assert str(tell(folder_store, section)) == "it has all of it"
    assert seen(section) == expected
    mlflow.set_tracking_uri(section.uri)
    folder = Path(mlflow.artifacts.download_artifacts("models:/mr-align@champion"))
    assert (folder / "weights").read_text() == "of b" and (folder / "README.md").read_text() == "# A card\n"


def test_names_of_metrics_are_what_mlflow_takes(versions):
    assert set(metrics_of_version(versions[0])) == {"cost_usd", "on/acc", "acc", "mis", "acc/a_b_ 1", "mis/a_b_ 1"}


def test_strata_of_long_or_like_names_have_metrics_of_their_own(folder_store, tmp_path):
    strata = [ALL, "x" * 300, "x" * 301, "訓" * 100, "a/b", "a:b"]
    scores = [{"variant": "mr_align", "stratum": one, "acc": 0.5} for one in strata]
    names = list(metrics_of_version(publish_version(folder_store, tmp_path, scores=scores)))
    assert len(names) == 1 + len(strata) and max(len(name.encode()) for name in names) == LONGEST_METRIC
    assert names[:2] == ["cost_usd", "acc"] and all(re.fullmatch(r"acc/[\w ]+-[0-9a-f]{8}", name) for name in names[2:])


@pytest.mark.parametrize(
    ("code", "status", "is_refusal"),
    [
        ("INVALID_PARAMETER_VALUE", 0, True),
        ("INTERNAL_ERROR", 0, False),
        ("PERMISSION_DENIED", 0, False),
        ("", 413, True),
        ("", 401, False),
        ("", 503, False),
    ],
)
def test_a_refusal_is_of_what_was_sent_and_not_of_who_sends_it(code, status, is_refusal):
    error = ConnectionError("no")
    vars(error).update(error_code=code, response=SimpleNamespace(status_code=status))
    assert registry._is_refusal(error) == is_refusal


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mr-align\[mlflow\]'"):
        check_registry(RegistryConfig(kind="mlflow", uri="http://host:5000"))
    check_registry(RegistryConfig())


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"kind": "mlflow"}, "retrain.registry.uri is needed"),
        ({"uri": "http://host:5000"}, "retrain.registry.uri has no effect when retrain.registry.kind is 'none'"),
        ({"model_name": "other"}, "retrain.registry.model_name has no effect"),
        ({"aliases": ["champion"]}, "retrain.registry.aliases has no effect"),
        ({"kind": "mlflow", "uri": "http://me:secret@host"}, "carries no user or password"),
        ({"kind": "mlflow", "uri": "mlruns"}, "or name a database file, sqlite:///PATH"),
        ({"kind": "mlflow", "uri": "http://host", "model_name": "a/b"}, "model_name"),
        ({"kind": "mlflow", "uri": "http://host", "aliases": ["support"]}, "leaves out 'champion'"),
    ],
)
def test_options_without_effect_or_without_sense_are_errors(section, says):
    with pytest.raises(ValidationError, match=says):
        RunConfig.model_validate({"questions": {"train": ["nq_open"]}, "retrain": {"registry": section}})

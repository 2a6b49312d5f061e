"""One artifact, made once: found again, made again when it is damaged, tried again when the failure can pass."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
from botocore.exceptions import EndpointConnectionError
from prefect import flow
from prefect.states import Failed

from mralign_core.errors import ArtifactError, DataError, StorageError, StoreUnavailableError
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.storage import ArtifactRef, ArtifactStore
from tasks.engine.plan import is_made
from tasks.engine.run import Built, file_digests
from tasks.engine.task import artifact, is_worth_a_retry
from tasks.prepare import load_evaluation_questions, load_questions, prepare_model
from tests.pocket_store import small_config


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path / "store")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where tasks of this test put temporary folders."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def data_file(config, ref) -> Path:
    return Path(config.storage.root, ref.path, "data", "questions.parquet")


def test_the_second_time_it_is_found(config):
    first, second = load_questions.produce(config), load_questions.produce(config)
    assert (first.was_cached, second.was_cached) == (False, True)
    assert first.ref == second.ref


def test_what_a_run_makes_up_to_an_artifact_is_made_when_all_of_it_is(config):
    assert not is_made(config, "evaluation-questions")
    load_evaluation_questions.run_here(config)
    assert not is_made(config, "evaluation-questions")  # the questions come before
    load_questions.run_here(config)
    assert is_made(config, "evaluation-questions") and not is_made(config, "adapter")


@pytest.mark.parametrize("damage", ["data gone", "data cut", "manifest gone", "manifest cut", "all gone"])
def test_a_damaged_artifact_is_a_miss_and_is_made_again(config, damage):
    ref = load_questions.run_here(config)
    what, how = damage.split()
    manifest = Path(config.storage.root, ref.path, "manifest.json")
    path = {"data": data_file(config, ref), "manifest": manifest, "all": manifest.parent}[what]
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert load_questions.work(config).find(ArtifactStore(config.storage)) is None
    again = load_questions.produce(config)
    assert not again.was_cached
    assert again.ref.sha256 == ref.sha256
    assert len(ArtifactStore(config.storage).read_table(again.ref, "questions.parquet")) == ref.rows


def test_reading_damaged_data_of_the_right_size_names_the_file_and_the_remedy(config):
    ref = load_questions.run_here(config)
    path = data_file(config, ref)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"questions\.parquet.*remove that folder and run its stage again"):
        ArtifactStore(config.storage).read_table(ref, "questions.parquet")


def test_the_manifest_says_how_the_artifact_came_about(config):
    store = ArtifactStore(config.storage)
    manifest = store.manifest(load_questions.run_here(config))
    assert manifest.fingerprint["pocket"] == {"world_seed": 0, "overwrite_prob": 0.25}
    assert manifest.counts["train"] == 335
    assert (manifest.rows, manifest.table, manifest.seed) == (335, "questions", 0)
    assert manifest.package_versions.keys() >= {"python", "torch", "prefect"}


def test_a_build_that_fails_leaves_nothing_behind(config, scratch):
    def build(making):
        (making.directory / "half").write_text("written")
        raise DataError("row 3: no answer")

    with pytest.raises(DataError):
        load_questions.work(config).produce(build=build)
    assert not list(scratch.iterdir())
    assert not [path for path in Path(config.storage.root).rglob("*") if path.is_file()]


def test_limits_take_the_first_questions_of_the_pocket_world(config):
    def pocket(limit):
        return {"name": "pocket", "limit": limit}

    limited = small_config(config.storage.root, questions__train=pocket(5), questions__eval=pocket(3))
    store = ArtifactStore(config.storage)
    for task, limit in ((load_questions, 5), (load_evaluation_questions, 3)):
        whole, some = (store.read_table(task.run_here(one), "questions.parquet") for one in (config, limited))
        assert some["question_id"].tolist() == whole["question_id"].head(limit).tolist()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), True),
        (TimeoutError("slow"), True),
        (OSError(5, "input/output error"), True),
        (OSError(28, "no space left on device"), False),
        (httpx.ReadTimeout("slow"), True),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), True),
        (EndpointUnavailableError("no attempt got through"), True),
        (DataError("row 3: no answer"), False),
        (StoreUnavailableError("no answer for minutes"), True),
        (StorageError("no such bucket"), False),
        (FileNotFoundError("traces.jsonl"), False),
        (PermissionError("store"), False),
        (ValueError("a bug"), False),
        (KeyError("a bug"), False),
    ],
)
def test_what_is_worth_a_retry(error, expected):
    assert is_worth_a_retry(None, None, Failed(data=error)) == expected  # type: ignore[arg-type]


def test_a_file_that_is_not_there_has_no_digest(tmp_path):
    (tmp_path / "a").write_text("x")
    assert set(file_digests(train=str(tmp_path / "a"), eval=str(tmp_path / "b"), other="")) == {"train"}


@pytest.fixture
def failing_task(monkeypatch):
    """Makes a task that fails once with an error, without a wait before it is tried again; and its attempts."""
    monkeypatch.setattr("tasks.engine.graph._ARTIFACTS", {})

    def make(error):
        attempts: list[int] = []

        @artifact("toy", stage="prepare", fields=lambda _: {})
        def fails_once(making) -> Built:
            attempts.append(len(attempts))
            if len(attempts) == 1:
                raise error
            (making.directory / "made.json").write_text(json.dumps(attempts))
            return Built()

        return fails_once.with_options(retry_delay_seconds=0), attempts

    return make


@pytest.mark.server
@pytest.mark.usefixtures("prefect_api")
class TestOnAServer:
    @pytest.mark.parametrize("error", [ConnectionError("the store hung up"), TimeoutError("slow")])
    def test_what_can_pass_is_tried_again(self, config, failing_task, error):
        work, attempts = failing_task(error)

        @flow(name="retried")
        def run() -> ArtifactRef:
            return work(config)

        ref = run()
        assert len(attempts) == 2
        assert ArtifactStore(config.storage).find("toy", ref.key) == ref

    @pytest.mark.parametrize("error", [DataError("row 3: no answer"), RuntimeError("a bug")])
    def test_what_cannot_pass_is_not(self, config, failing_task, error):
        work, attempts = failing_task(error)

        @flow(name="not-retried")
        def run() -> ArtifactRef:
            return work(config)

        state = run(return_state=True)
        assert state.is_failed()
        assert len(attempts) == 1
        assert state.result(raise_on_failure=False) == error
        assert not list(Path(config.storage.root).rglob("manifest.json"))

    def test_a_store_that_hangs_up_once_is_tried_again(self, config, monkeypatch):
        publish, calls = ArtifactStore.publish, []

        def hangs_up_once(self, *args, **kwargs):
            calls.append(args[0])
            if len(calls) == 1:
                raise ConnectionError("the store hung up")
            return publish(self, *args, **kwargs)

        monkeypatch.setattr(ArtifactStore, "publish", hangs_up_once)
        task = load_questions.with_options(retry_delay_seconds=0)
        ref = flow(name="store-hangs-up")(lambda: task(config))()
        assert calls == ["questions", "questions"]
        assert load_questions.work(config).find(ArtifactStore(config.storage)) == ref


def test_the_defaults_of_a_stage_task_are_patient():
    assert prepare_model.retries == 3
    assert prepare_model.retry_jitter_factor == 1.0
    assert prepare_model.retry_delay_seconds == [2, 4, 8]

"""The config files, ``prefect.yaml``, and the deployments as a user of the UI or the API meets them."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint

from deployments import serve
from deployments.steps import CHECKOUT
from mralign_core.config import load_config
from mralign_core.config.presets import PRESETS
from tests.page_artifacts import check_artifacts
from tests.prefect_server import state_in

CONFIG_NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
DEPLOYMENTS = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
STAGES = {"prepare", "generate", "annotate", "estimate", "reward", "train", "evaluate"}
STUDIES = {"compare-annotators", "induce-taxonomy", "distil-annotator", "ablate"}
SHARES = {"generate-shards", "score-shards", "ablate-world"}
TOOLS = {"questions", "dry-run", "lineage", "compare", "sensitivity", "export"}
ON_POOLS = {f"{stage}.where": "deployment" for stage in ("generate", "train", "evaluate")}


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_config_file_is_valid_and_named_after_itself(name):
    assert load_config(PRESETS / f"{name}.yaml").name == name


def test_paper_config_has_the_papers_values():
    config = load_config(PRESETS / "qwen3-8b-paper.yaml")
    generate, train, evaluate = config.generate, config.train, config.evaluate
    assert (generate.num_draws, generate.temperature, generate.top_p) == (3, 0.2, 0.9)
    assert (generate.min_segments, generate.max_segments) == (4, 15)
    assert (generate.min_reasoning_tokens, generate.max_reasoning_tokens) == (450, 1000)
    assert (train.beta, train.desirable_weight, train.undesirable_weight) == (0.1, 1.0, 1.5)
    assert (train.lora_r, train.learning_rate, train.num_epochs, train.warmup_ratio) == (32, 5e-6, 3, 0.1)
    assert train.global_batch_size == 4 * 2 * 8
    assert (evaluate.temperature, evaluate.top_p, evaluate.top_k) == (0.6, 0.95, 20)
    assert evaluate.max_new_tokens == 8192
    assert (config.estimate.num_iterations, config.estimate.damping, config.estimate.prior) == (5, 0.6, 0.1)


def test_every_flow_has_a_deployment_that_loads_it():
    loaded: dict[str, Flow] = {entry["name"]: load_flow_from_entrypoint(entry["entrypoint"]) for entry in DEPLOYMENTS}
    flows = {name: flow.name for name, flow in loaded.items()}
    kinds = {"share": SHARES, "stage": STAGES, "study": STUDIES, "tool": TOOLS}
    named = {f"{kind}-{name}": name for kind, names in kinds.items() for name in names}
    assert flows == {**named, "pipeline": "mr-align", "weekly-retrain": "mr-align"}
    assert min(flows) == "pipeline", "the UI lists deployments by name, and most people want this one"
    # deployments.worker runs none.
    assert not any(flow.on_cancellation_hooks or flow.on_crashed_hooks for flow in loaded.values())


def test_every_deployment_begins_with_the_preset_and_leaves_the_gpu_pool_its_work():
    (stage,) = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["definitions"]
    assert stage["parameters"]["config"] == {"preset": "pocket", "gpu_pool": True}
    assert all({"preset", "gpu_pool"} <= entry["parameters"]["config"].keys() for entry in DEPLOYMENTS)


def test_a_port_that_something_else_holds_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(serve, "ANSWER_S", 0.0)
    with socket.socket() as other:
        other.bind((serve.HOST, 0))
        other.listen()
        other.settimeout(0)
        port = other.getsockname()[1]
        with pytest.raises(serve.ServeError, match=rf"port {port} is taken(.|\n)*MRALIGN_PORT="):
            serve.refuse_taken_port(port)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    # Two workers share two shards of questions; with few steps and questions, there are traces of both polarities yet.
    shared = {"generate.num_workers": 2, "generate.shard_size": 100}
    few = {"questions.train": {"name": "pocket", "limit": 160}, "questions.eval": {"name": "pocket", "limit": 60}}
    quick = {"model.cpu_threads": 1, "model.pocket.pretrain_steps": 60, **few}
    overrides = {"storage.root": str(tmp_path_factory.mktemp("store")), **ON_POOLS, **shared, **quick}
    return load_config(PRESETS / "smoke.yaml", overrides).model_dump(mode="json")


@pytest.fixture(scope="module")
def pipeline_run(served, smoke):
    """A run from the form; it works while other tests look at the deployments."""
    return served.submit("mr-align/pipeline", {"config": smoke}).json()["id"]


def bytes_of(path):
    """What is in a file; nothing if it has gone meanwhile."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def command_line(process):
    """Of a process; nothing if it has ended meanwhile."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.mark.server
@pytest.mark.usefixtures("pipeline_run")
class TestServed:
    def test_pools_with_a_worker_and_deployments_are_there(self, served):
        assert {pool["name"] for pool in served.filter("work_pools")} >= {"cpu", "a800"}
        pools = {entry["name"]: entry["work_pool_name"] for entry in served.filter("deployments")}
        assert pools == {entry["name"]: entry["work_pool"]["name"] for entry in DEPLOYMENTS}
        assert {name for name, pool in pools.items() if pool == "a800"} == {
            "stage-train",
            "share-generate-shards",
            "share-score-shards",
        }
        for pool in ("cpu", "a800"):
            workers = served.filter(f"work_pools/{pool}/workers")
            assert [worker["name"] for worker in workers] == [f"{pool} of make serve on {socket.gethostname()}"]

    def test_serving_twice_starts_nothing(self, served):
        command = [sys.executable, "-m", "deployments.serve", "--port", str(served.api.base_url.port)]
        second = subprocess.run(command, env=served.env, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert second.returncode == 0, second.stderr
        assert second.stdout.startswith("Already serving")

    def test_lost_runs_are_found_after_three_heartbeats_or_more(self, served):
        (automation,) = served.filter("automations")
        assert automation["enabled"]
        assert automation["actions"][0]["state"] == "CRASHED"
        assert automation["trigger"]["within"] >= 3 * 180

    def test_form_is_short_and_folded_and_explains_every_field(self, served):
        pipeline = served.deployment("mr-align/pipeline")
        assert pipeline["parameters"]["config"] == {"preset": "pocket", "gpu_pool": True}
        schema = pipeline["parameter_openapi_schema"]
        fields, sections = schema["properties"]["config"]["properties"], schema["definitions"]
        assert next(name for name, field in fields.items() if "anyOf" in field) == "storage"
        shown = [
            (f"{name}.{field}", each) for name, one in sections.items() for field, each in one["properties"].items()
        ]
        shown += list(fields.items())
        assert not [name for name, field in shown if not field.get("description") and "$ref" not in str(field)]

    def test_form_carries_the_constraints(self, served):
        schema = served.deployment("mr-align/pipeline")["parameter_openapi_schema"]
        fields, sections = schema["properties"]["config"]["properties"], schema["definitions"]
        draws = sections["GenerateConfig"]["properties"]["num_draws"]
        assert (draws["minimum"], draws["maximum"]) == (1, 64)
        assert sections["TrainConfig"]["properties"]["where"]["enum"] == ["inline", "deployment"]
        assert fields["name"]["pattern"].startswith("^")
        assert fields["preset"]["enum"][0] == "pocket" and set(fields["preset"]["enum"]) == set(CONFIG_NAMES)

    @pytest.mark.parametrize(
        ("section", "field", "value", "why"),
        [
            ("train", "learning_rate", -1, "config.train.learning_rate"),
            ("model", "dtype", "int8", "not one of"),
            ("generate", "num_drawz", 3, "num_drawz"),
        ],
    )
    def test_a_bad_value_is_refused_at_submission(self, served, section, field, value, why):
        config = {"preset": "smoke", section: {field: value}}
        reply = served.submit("mr-align/pipeline", {"config": config})
        assert reply.status_code == 409
        assert why in reply.json()["detail"]

    def test_what_is_urgent_goes_first_and_the_weekly_retraining_last(self, served):
        for pool in ("cpu", "a800"):
            queues = served.filter(f"work_pools/{pool}/queues")
            names = [queue["name"] for queue in sorted(queues, key=lambda queue: queue["priority"])]
            assert names == ["urgent", "default", "background"]
        weekly = served.deployment("mr-align/weekly-retrain")
        assert weekly["work_queue_name"] == "background"
        # Prefect gives a waiting run's place away, and then ends it: a claim in the store has them take turns.
        assert weekly["global_concurrency_limit"] is None

    def test_what_a_command_prints_is_the_artifact_of_a_run_that_looks(self, served):
        run = served.wait_for(served.submit("questions/tool-questions", {"config": {"preset": "smoke"}}).json()["id"])
        assert run["state_name"] == "Completed", run["state"]["message"]
        (shown,) = served.filter("artifacts", artifacts={"flow_run_id": {"any_": [run["id"]]}})
        assert shown["key"] == "questions" and "What is the birthplace of" in shown["data"]

    def test_schedule_is_off_until_switched_on(self, served):
        weekly = served.deployment("mr-align/weekly-retrain")
        (schedule,) = weekly["schedules"]
        assert not schedule["active"]
        where = f"/deployments/{weekly['id']}"
        assert served.api.patch(f"{where}/schedules/{schedule['id']}", json={"active": True}).is_success
        assert [each["active"] for each in served.deployment("mr-align/weekly-retrain")["schedules"]] == [True]
        assert served.api.post(f"{where}/schedule", json={"min_runs": 2}).is_success
        due = served.filter("flow_runs", deployments={"id": {"any_": [weekly["id"]]}})
        assert due
        assert all("T03:00:00" in run["expected_start_time"] for run in due)

    def test_pipeline_run_completes_with_the_heavy_stages_on_the_gpu_pool(self, served, smoke, pipeline_run):
        run = served.wait_for(pipeline_run)
        assert run["state_name"] == "Completed", run["state"]["message"]
        stages = served.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [pipeline_run]}})
        assert {stage["state_name"] for stage in stages} == {"Completed"}
        assert len(stages) == len(STAGES)
        inside = [stage["id"] for stage in stages]
        children = served.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": inside}})
        assert {(child["work_pool_name"], child["state_name"]) for child in children} == {("a800", "Completed")}
        ours = sorted(child["name"] for child in children)
        name = run["name"]
        assert name.startswith("smoke-s0-")
        assert {stage["name"] for stage in stages} == {f"{name}-{stage}" for stage in STAGES}
        shares = ["generate-shards-0", "generate-shards-1", "score-shards-0", "train-0"]
        assert ours == [f"{name}-{share}" for share in shares]
        shards = Path(smoke["storage"]["root"]).glob("artifacts/generations-shard/**/manifest.json")
        assert sorted(json.loads(path.read_text())["counts"]["questions"] for path in shards) == [60, 100]

    def test_page_of_the_run_shows_tables_and_figures_once_each_as_the_ui_can(self, served, pipeline_run):
        served.wait_for(pipeline_run)
        artifacts = served.filter("artifacts", artifacts={"flow_run_id": {"any_": [pipeline_run]}})
        kinds: dict[str, set[str]] = {}
        for artifact in artifacts:
            kinds.setdefault(artifact["type"], set()).add(artifact["key"])
        assert "progress" not in kinds, "what is finished leaves the page"
        assert kinds["table"] >= {"yield", "draws", "weights", "annotation-ledger"}
        assert kinds["image"] >= {"transitions", "training-curves", "label-mix"}
        assert kinds["markdown"] == {"run", "diagnostics", "results", "training-doctor"}
        check_artifacts(artifacts)

    def test_log_of_a_stage_has_what_the_core_says(self, served, pipeline_run):
        served.wait_for(pipeline_run)
        stages = served.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [pipeline_run]}})
        lines = served.filter("logs", logs={"flow_run_id": {"any_": [stage["id"] for stage in stages]}})
        assert any(line["name"].startswith("mralign_core") for line in lines)

    def test_nobody_was_asked_for_anything_but_this_machine(self, served, pipeline_run):
        served.wait_for(pipeline_run)
        assert not served.foreign_connections()

    def test_the_token_is_in_no_log_no_database_and_on_no_command_line(self, served, smoke, pipeline_run):
        served.wait_for(pipeline_run)
        word = served.server.token.split(":")[1].encode()
        written = [path for path in served.home.rglob("*") if path.is_file() and path.parent.name != "door"]
        written += [path for path in Path(smoke["storage"]["root"]).rglob("*") if path.is_file()]
        assert len(written) > 100
        assert not [path for path in written if word in bytes_of(path)]
        assert not [line for line in map(command_line, served.family()) if word.decode() in line]

    def test_stopping_leaves_no_process_behind_even_in_the_middle_of_a_run(self, served, smoke):
        endless = {**smoke, "name": "endless", "seed": 1}
        endless["model"] = {**smoke["model"], "pocket": {**smoke["model"]["pocket"], "pretrain_steps": 10_000}}
        run = served.submit("prepare/stage-prepare", {"config": endless}).json()["id"]
        assert served.wait_for(run, {"RUNNING"})["state_type"] == "RUNNING"
        family = served.family()
        assert len(family) > 4
        served.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert served.process.wait(timeout=90) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 30
        assert not psutil.wait_procs(family, timeout=30)[1]
        is_told = state_in(served.env["PREFECT_HOME"], run) == "CRASHED"
        assert is_told or "could not be told" in (served.home / "serve.log").read_text()

"""The whole pipeline on the pocket world: run, run again, on a folder and on S3."""

import csv
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from html import unescape
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import httpx
import numpy as np
import pandas as pd
import pytest
from peft import PeftConfig
from prefect.flow_runs import resume_flow_run
from safetensors.torch import load_file

from flows.commands import judge_sheet
from flows.commands.server import wait_for_records
from flows.generate import generate
from flows.pipeline import pipeline
from flows.weekly_retrain import at_it_alone, weekly_retrain
from mralign_core.config import RunConfig, StorageConfig, overridden
from mralign_core.config.retrain import GateConfig, RetrainConfig
from mralign_core.errors import BudgetError
from mralign_core.estimation.thinking_change import thinking_change, two_models
from mralign_core.llm.ledger import month_of
from mralign_core.method.matching import exact_match
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.grammar import WORDINGS
from mralign_core.reporting.decision_findings import decision_sentences, read_decisions
from mralign_core.reporting.delta_graph import strongest_edges
from mralign_core.retraining.history import Retrainings
from mralign_core.storage import ArtifactRef, ArtifactStore, render_lineage
from mralign_core.versions.aliases import Aliases, require_whole, version_name
from mralign_core.versions.differences import version_differences
from mralign_core.versions.record import digests_of_questions
from mralign_core.versions.version import read_versions, trained_on
from tasks.engine.last_run import last_run
from tasks.engine.one_task import Inputs, run_one
from tasks.engine.plan import plan
from tasks.estimate import diagnose_transitions, estimate_transitions
from tasks.generate import select_candidates
from tasks.prepare import load_questions, prepare_model
from tasks.reward import weigh_segments
from tests.faulty_s3 import PASSING, FaultyS3
from tests.homes import Home
from tests.pocket_store import copy_store, small_config
from tests.prefect_api import auth_for, reporting_to
from tests.stages import draw, label

STAGES = ["prepare", "generate", "annotate", "estimate", "reward", "train", "evaluate"]

pytestmark = pytest.mark.server


class Run(NamedTuple):
    """A pipeline run that completed: its config, and the states of its stages and tasks by name."""

    config: RunConfig
    stages: dict[str, str]
    tasks: dict[str, str]

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.config.storage)


def run_pipeline(config: RunConfig, url: str) -> Run:
    state = pipeline(config, return_state=True)
    assert state.is_completed()
    wait_for_records(state)
    run_id = str(state.state_details.flow_run_id)
    stages = find(url, "flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run_id]}})
    tasks = find(url, "task_runs", flow_runs={"id": {"any_": [stage["id"] for stage in stages]}})
    flows = {flow["id"]: flow["name"] for flow in find(url, "flows")}
    return Run(
        config,
        {flows[stage["flow_id"]]: stage["state_name"] for stage in stages},
        {task["name"]: task["state_name"] for task in tasks},
    )


def find(url: str, what: str, **query) -> list[dict]:
    return httpx.post(f"{url}/{what}/filter", json=query, timeout=60, auth=auth_for(url)).raise_for_status().json()


def published(root: Path | str) -> dict[str, tuple[str, int]]:
    """What a store on disk holds: path of each manifest → its content and when it was written."""
    found = Path(root).glob("artifacts/**/manifest.json")
    return {str(path.relative_to(root)): (path.read_text(), path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def finished(pocket_store, prefect_url, tmp_path_factory):
    """An uninterrupted run."""
    root = copy_store(pocket_store, tmp_path_factory.mktemp("finished") / "store")
    with reporting_to(prefect_url):
        return run_pipeline(small_config(root, evaluate__label_thinking="when_free"), prefect_url)


def test_every_stage_completes_and_only_what_is_there_is_cached(finished):
    assert finished.stages == dict.fromkeys(STAGES, "Completed")
    cached = {name for name, state in finished.tasks.items() if state == "Cached"}
    assert cached == {"load_questions", "load_evaluation_questions", "prepare_model"}
    assert set(finished.tasks.values()) == {"Cached", "Completed"}


def test_a_second_run_computes_nothing(finished, prefect_api):
    root = finished.config.storage.root
    before = published(root)
    again = run_pipeline(finished.config, prefect_api)
    assert again.stages == finished.stages
    # Shards whose table is there are not looked for.
    joined = [name for name in finished.tasks if not name.startswith(("generate ", "annotate ", "evaluate "))]
    assert again.tasks == dict.fromkeys(joined, "Cached")
    assert published(root) == before


def test_a_dry_run_says_what_a_run_then_finds(finished):
    assert all(entry.found for entry in plan(finished.config).everything)
    changed = small_config(finished.config.storage.root, reward__clip_max=2.0)
    missing = {entry.name: entry.is_known for entry in plan(changed).everything if not entry.found}
    versions = ("version kto", "version mr_align")
    later = dict.fromkeys(("adapter mr_align", "scores mr_align", "results", "report", *versions), False)
    assert missing == {"diagnostics": True, "diagnostic-figures": False, "weights": True, **later}


def grammar_label(text: str) -> list[str]:
    """The label whose wording a segment has; the model writes no other but by mistake."""
    slot = re.escape("{") + "[a-z_]+" + re.escape("}")
    return [
        label
        for label, wordings in WORDINGS.items()
        if any(re.fullmatch(".+".join(map(re.escape, re.split(slot, wording))), text) for wording in wordings)
    ][:1]


def test_held_out_thinkings_are_labelled_and_their_edges_are_those_of_the_grammars_own_labels(finished):
    made = plan(finished.config).made
    traces = finished.store.read_table(made["held-out-traces"], "candidates.parquet")
    panel = finished.store.read_table(made["held-out-annotations"], "annotations.parquet")
    assert set(traces["variant"]) == {"on", "mr_align"} and set(panel["trace_id"]) == set(traces["trace_id"])
    texts = {
        (row.trace_id, place): row.completion[segment["start"] : segment["end"]]
        for row in traces.itertuples()
        for place, segment in enumerate(row.segments)
    }
    cells = zip(panel["trace_id"], panel["segment"], strict=True)
    true = panel.assign(labels=[grammar_label(texts[cell]) for cell in cells], step=panel["segment"])
    assert true["labels"].map(bool).mean() > 0.99
    by_panel, by_grammar = (
        thinking_change(
            two_models(traces, labels, "mr_align", "on", PAPER_TAXONOMY),
            PAPER_TAXONOMY.num_states,
            rng=np.random.default_rng(0),
        )
        for labels in (panel, true)
    )
    difference = by_grammar.first.p - by_grammar.second.p
    for is_shown, least in ((by_panel.is_shown(0.05), 1.0), (None, 0.8)):
        edges = [*chain(*strongest_edges(by_panel.first, by_panel.second, is_shown=is_shown))]
        agree = [difference[edge.source, edge.target] * edge.difference > 0 for edge in edges]
        assert not edges or np.mean(agree) >= least
    report = (finished.store.open_directory(made["report"]) / "report.html").read_text()
    assert "Which moves MR-ALIGN makes more, and which less often than before" in report


def test_results_show_the_gap_and_that_alignment_narrows_it(finished):
    folder = finished.store.open_directory(last_run(finished.config, "results"))
    rows = pd.DataFrame(json.loads((folder / "summary.json").read_text()))
    rows = rows[rows["stratum"] == "(all)"].set_index("variant")
    assert set(rows.index) == {"off", "on", "kto", "mr_align"}
    assert pd.isna(rows.loc["off", "mis"])
    assert rows.loc["on", "mis"] >= 0.08
    assert rows.loc["kto", "mis"] < rows.loc["on", "mis"]
    assert rows.loc["mr_align", "mis"] < rows.loc["on", "mis"]


def test_results_say_what_is_decided_and_what_flipped(finished):
    results = last_run(finished.config, "results")
    decided = read_decisions(finished.store.open_directory(results))
    assert decided is not None
    acc = decided.decisions[decided.decisions["metric"] == "acc"].set_index(["variant", "baseline"])
    assert list(acc.index) == [("kto", "on"), ("mr_align", "on"), ("mr_align", "kto")]
    assert set(acc["test"]) == {"mcnemar"}
    clear = (acc["low"] > 0) | (acc["high"] < 0)
    assert ((acc["decision"] == "shown") == ((acc["p_value"] <= 0.05) & clear)).all()
    for pair, row in acc.iterrows():
        flips = decided.flips[(decided.flips["variant"] == pair[0]) & (decided.flips["baseline"] == pair[1])]
        assert (flips["flip"] == "wrong to right").sum() == row["better"]
        assert (flips["flip"] == "right to wrong").sum() == row["worse"]
    page = unescape((finished.store.open_directory(last_run(finished.config, "report")) / "report.html").read_text())
    assert all(sentence in page for sentence in decision_sentences(decided.decisions))


def test_people_who_judge_as_exact_match_does_agree_with_it(finished, tmp_path):
    of = Inputs(finished.config, {})
    written = judge_sheet.write(finished.config, of, tmp_path / "sheet.csv", 40, seed=0)
    rows = list(csv.DictReader(written.sheet.open(encoding="utf-8-sig", newline="")))
    assert len(rows) == written.num_items and written.num_questions == 40
    for row in rows:
        row["verdict"] = "right" if exact_match(row["answer"], row["reference_answers"].split(" / ")) else "wrong"
    with written.sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    sheet, (agreement, rates, moved), advice = judge_sheet.read(finished.config, of, written.sheet, 0.03)
    assert (sheet.num_items, sheet.num_not_judged) == (len(rows), 0)
    assert agreement.rows[0][:4] == ["all variants", "160", "100.0", "1.00 [1.00, 1.00]"]
    assert [row[0] for row in rates.rows] == ["think off", "think on", "KTO", "MR-ALIGN"]
    assert all(str(row[5]).startswith("40 of ") and " to " in str(row[4]) for row in rates.rows)
    assert len(moved.rows) == 3 and "±3 points" in advice

    named = overridden(finished.config, {"evaluate.people_sheet": str(written.sheet)})
    page = finished.store.open_file(run_one(named, "report", shard=0, variant="", named={}), "report.html").read_text()
    section = unescape(page).partition('<section id="people" ')[2].partition("</section>")[0]
    assert advice in section and all(str(cell) in section for row in agreement.rows for cell in row)


def test_the_report_is_one_page_without_external_parts(finished):
    page = (finished.store.open_directory(last_run(finished.config, "report")) / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "<script src" not in page
    assert 'rel="stylesheet"' not in page
    assert str(finished.config.storage.root) not in page
    for name in ("think-on", "MR-ALIGN", "KTO"):
        assert name.lower() in page.lower()


def test_adapters_are_peft_directories_in_safetensors(finished):
    for variant in finished.config.train.variants:
        folder = finished.store.open_directory(last_run(finished.config, f"adapter:{variant}"))
        assert PeftConfig.from_pretrained(str(folder)).r == finished.config.train.lora_r
        weights = load_file(folder / "adapter_model.safetensors")
        assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
        assert (folder / "README.md").read_text().startswith("---\nbase_model: pocket")


def test_every_trained_variant_is_a_version_with_what_it_scored_and_what_it_was_trained_on(finished):
    mr_align, kto = sorted(read_versions(finished.store), key=lambda version: version.record.variant, reverse=True)
    assert (mr_align.record.variant, kto.record.variant) == ("mr_align", "kto")
    assert mr_align.ref == last_run(finished.config, "version:mr_align")
    assert mr_align.adapter == last_run(finished.config, "adapter:mr_align")
    assert require_whole(finished.store, mr_align.id) == mr_align.ref
    summary = json.loads((finished.store.open_directory(mr_align.parent("results")) / "summary.json").read_text())
    assert mr_align.record.scores == [row for row in summary if row["variant"] in ("off", "on", "mr_align")]
    assert mr_align.record.config == finished.config.fingerprint()
    assert {"questions", "generations", "transitions", "weights"} <= mr_align.record.made_from.keys()
    assert "weights" not in kto.record.made_from
    questions = finished.store.read_table(mr_align.parent("questions"), "questions.parquet")
    assert trained_on(finished.store, mr_align) <= set(digests_of_questions(questions))
    assert mr_align.record.trained_on.number == len(trained_on(finished.store, mr_align)) > 0
    held_out = finished.store.read_table(mr_align.parent("evaluation-questions"), "questions.parquet")
    assert not trained_on(finished.store, mr_align) & set(digests_of_questions(held_out))
    card = finished.store.open_file(mr_align.ref, "card.md").read_text()
    assert "## Results" in card and "| (all) | Acc |" in card


def test_two_versions_of_one_run_differ_in_what_they_were_trained_with_alone(finished):
    kto, mr_align = sorted(read_versions(finished.store), key=lambda version: version.record.variant)
    found = version_differences(finished.store, kto, mr_align)
    assert found.config == [] and found.segments
    assert set(found.artifacts) == {"adapter", "scores", "transitions", "weights"}
    assert (found.questions.added, found.traces.gone, found.segments.num_relabelled) == (0, 0, 0)
    decided = read_decisions(finished.store.open_directory(mr_align.parent("results")))
    assert decided is not None
    pair = (decided.decisions["variant"] == "mr_align") & (decided.decisions["baseline"] == "kto")
    acc = decided.decisions[pair & (decided.decisions["metric"] == "acc")].iloc[0]
    assert (found.flips["flip"] == "wrong to right").sum() == acc["better"]
    assert (found.flips["flip"] == "right to wrong").sum() == acc["worse"]


def test_threads_make_the_same_draws(finished, prefect_api, tmp_path):
    root = shutil.copytree(finished.config.storage.root, tmp_path / "store")
    for name in ("generations-shard", "generations", "candidates"):
        shutil.rmtree(root / "artifacts" / name)
    config = small_config(root, generate__where="threads", generate__num_workers=2, generate__shard_size=120)
    made = generate(config)
    assert made.generations and made.candidates
    draws, before = (
        store.read_table(ref, "generations.parquet")
        for store, ref in (
            (ArtifactStore(config.storage), made.generations),
            (finished.store, last_run(finished.config, "generations")),
        )
    )
    pd.testing.assert_frame_equal(draws, before)
    assert made.candidates.sha256 == last_run(finished.config, "candidates").sha256


def test_lineage_reaches_back_to_the_questions_and_the_model(finished):
    text = render_lineage(finished.store.lineage(last_run(finished.config, "report")))
    for name in ("scores", "adapter", "weights", "transitions", "annotations", "candidates", "generations", "model"):
        assert name in text


@pytest.fixture
def proxy(s3_server):
    """Stands before the S3 server and spoils one request in twenty, each in another way."""
    kinds = [kind for kind in PASSING if kind != "slow"]
    with FaultyS3(s3_server.endpoint_url, seed=11, rates=dict.fromkeys(kinds, 0.05 / len(kinds))) as proxy:
        yield proxy


@pytest.fixture
def s3_config(proxy, s3_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of downloaded artifacts
    return small_config(s3_root, storage__endpoint_url=proxy.url)


def copy_artifact(ref: ArtifactRef, source: ArtifactStore, target: ArtifactStore) -> None:
    manifest = source.manifest(ref)
    fields = {name: getattr(manifest, name) for name in ("parents", "fingerprint", "rows", "table", "counts", "seed")}
    target.publish(ref.stage, ref.key, source.open_directory(ref), **fields)


def test_on_a_faulty_s3_server_the_digests_are_those_of_a_folder(finished, s3_config, proxy):
    remote = ArtifactStore(s3_config.storage)
    copy_artifact(last_run(finished.config, "model"), finished.store, remote)
    threading.Timer(2.0, proxy.outage, [2.0]).start()
    made = from_questions_to_weights(s3_config)
    assert sum(proxy.num_faults.values()) > 5
    assert made["model"].uri.startswith("s3://")
    assert {name: ref.sha256 for name, ref in made.items()} == {
        name: last_run(finished.config, name).sha256 for name in made
    }
    statuses = {entry.name: entry.status for entry in plan(s3_config).everything}
    assert {statuses[name] for name in made} == {"cached"}


def from_questions_to_weights(config: RunConfig) -> dict[str, ArtifactRef]:
    """The stages up to reward, each task in this process, as for debugging."""
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    generations = draw(config, questions, model)
    candidates = select_candidates.run_here(config, questions, model, generations)
    annotations = label(config, candidates)
    transitions = estimate_transitions.run_here(config, candidates, annotations)
    diagnostics = diagnose_transitions.run_here(config, candidates, annotations, transitions)
    weights = weigh_segments.run_here(config, candidates, annotations, transitions)
    return {
        "questions": questions,
        "model": model,
        "generations": generations,
        "candidates": candidates,
        "annotations": annotations,
        "transitions": transitions,
        "diagnostics": diagnostics,
        "weights": weights,
    }


EASY_GATE = {"comparisons": 1, "min_gain": 0.0, "max_loss": 0.1, "confidence": 0.6}
"""What one epoch's gain on one draw a question passes."""


class TestRetraining:
    """On a copy of that run, whose pipeline is all there: what remains is the gate."""

    @pytest.fixture(scope="class")
    def config(self, finished, tmp_path_factory):
        root = tmp_path_factory.mktemp("retraining") / "store"
        shutil.copytree(finished.config.storage.root, root)
        return small_config(root, name="weekly", retrain__gate=EASY_GATE)

    def champion(self, config):
        entry = Aliases(ArtifactStore(config.storage)).current("champion")
        return entry.to if entry else ""

    def test_without_a_champion_it_is_compared_with_the_base_model_and_promoted(self, config, prefect_api):
        assert weekly_retrain(config).startswith("promoted: ")
        store = ArtifactStore(config.storage)
        (done,) = Retrainings(store, "weekly").all()
        assert (done.outcome, done.version, done.compared_with) == ("promoted", self.champion(config), "")
        (entry,) = Aliases(store).history("champion")
        assert "Mis" in entry.why and entry.by.startswith("retraining 'weekly', run weekly-")
        (event,) = events_of(prefect_api, "mralign.retraining.promoted")
        assert event["payload"]["version"] == done.version

    def test_where_nothing_changed_it_says_so_and_computes_nothing(self, config, prefect_api):
        before = published(config.storage.root)
        assert weekly_retrain(config).startswith("nothing-new: ")
        assert published(config.storage.root) == before

    def test_a_registry_that_was_away_stops_nothing_and_is_told_by_the_next(
        self, config, prefect_api, tmp_path, monkeypatch
    ):
        pytest.importorskip("mlflow", reason="package mlflow-skinny is not installed")
        monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of a database of its own
        root, database = tmp_path / "store", f"sqlite:///{tmp_path / 'mlflow.db'}"
        shutil.copytree(config.storage.root, root, ignore=shutil.ignore_patterns("aliases", "retrainings"))
        away, there = (
            small_config(root, name="weekly", retrain={"gate": EASY_GATE, "registry": {"kind": "mlflow", "uri": uri}})
            for uri in ("http://127.0.0.1:1", database)
        )
        assert weekly_retrain(away).startswith("promoted: ")
        assert weekly_retrain(there).startswith("nothing-new: ")
        from mlflow import MlflowClient

        made = MlflowClient(database, database).get_model_version_by_alias("mr-align", "champion")
        assert (made.version, made.tags["mralign.version"]) == (1, self.champion(there))

    def test_a_model_that_is_not_shown_to_be_better_does_not_take_its_place(self, config, prefect_api):
        champion = self.champion(config)
        changed = config.model_copy(update={"reward": config.reward.model_copy(update={"clip_max": 2.0})})
        assert weekly_retrain(changed).startswith(("held: ", "rejected: "))
        assert self.champion(config) == champion
        done = Retrainings(ArtifactStore(config.storage), "weekly").all()[-1]
        assert done.compared_with == champion and done.version != champion
        assert weekly_retrain(changed).startswith("nothing-new: ")

    def test_a_person_is_asked_first_where_the_config_says_so(self, config, prefect_api, tmp_path):
        root = tmp_path / "store"
        shutil.copytree(config.storage.root, root, ignore=shutil.ignore_patterns("aliases", "retrainings"))
        asking = small_config(root, name="asking", retrain={"mode": "ask", "gate": EASY_GATE})
        with ThreadPoolExecutor(1) as thread:
            line = thread.submit(copy_context().run, weekly_retrain, asking)
            run_id = paused_run(prefect_api, "asking")
            resume_flow_run(UUID(run_id), run_input={"approve": True, "by": "Ada", "note": "looked at it"})
            assert line.result(timeout=120).startswith("promoted: ")
        (entry,) = Aliases(ArtifactStore(asking.storage)).history("champion")
        assert (entry.by, entry.why) == ("Ada", "looked at it")

    def test_after_the_time_out_it_ends_well_and_the_champion_stays(self, config, prefect_api, tmp_path):
        root = tmp_path / "store"
        shutil.copytree(config.storage.root, root, ignore=shutil.ignore_patterns("aliases", "retrainings"))
        asking = small_config(root, name="silent", retrain={"mode": "ask", "ask_timeout_h": 0.001, "gate": EASY_GATE})
        assert weekly_retrain(asking).startswith("held: not approved: nobody answered within 0.001 hours")
        assert Aliases(ArtifactStore(asking.storage)).current("champion") is None

    def test_two_at_once_are_one_after_the_other(self, config, prefect_api):
        brief = config.model_copy(update={"storage": config.storage.model_copy(update={"claim_lease_s": 6.0})})
        with at_it_alone(brief) as first:
            assert first is None
            assert weekly_retrain(brief).startswith("nothing done: run ")
        assert weekly_retrain(brief).startswith("nothing-new: ")

    def test_what_the_alias_was_moved_away_from_only_a_person_brings_back(self, config, prefect_api, tmp_path):
        root = tmp_path / "store"
        shutil.copytree(config.storage.root, root)
        own = small_config(root, name="weekly", retrain__gate=EASY_GATE)
        store = ArtifactStore(own.storage)
        aliases, (champion,) = Aliases(store), [entry.to for entry in Aliases(store).history("champion")]
        other = next(one.id for one in read_versions(store) if one.id != champion)
        aliases.move("champion", other, expected=champion, by="Ada", why="complaints")
        assert weekly_retrain(own).startswith("nothing-new: ")
        assert self.champion(own) == other

    def test_another_gate_decides_again(self, config, prefect_api):
        strict = {**EASY_GATE, "min_gain": 0.5}
        changed = config.model_copy(update={"reward": config.reward.model_copy(update={"clip_max": 2.0})})
        retrain = RetrainConfig(gate=GateConfig(**strict))
        assert weekly_retrain(changed.model_copy(update={"retrain": retrain})).startswith(("held: ", "rejected: "))

    def test_a_month_that_has_cost_its_ceiling_is_over(self, config, prefect_api):
        paid = {month_of(datetime.now(UTC)): 12.5}
        store = ArtifactStore(config.storage)
        store.put_json("ledgers/annotate/any/one-run", {"by_month": paid})
        limited = config.model_copy(
            update={
                "retrain": config.retrain.model_copy(update={"budget_usd_a_month": 10.0}),
                "reward": config.reward.model_copy(update={"clip_max": 1.5}),
            }
        )
        with pytest.raises(BudgetError, match=r"12\.50 dollars were paid"):
            weekly_retrain(limited)
        assert Retrainings(store, "weekly").all()[-1].outcome == "over-budget"


@pytest.mark.soak
class TestTwoHomes:
    """Two homes, each with its own Prefect server and only a bucket in common; the pipeline of the first is there."""

    @pytest.fixture
    def section(self, s3_server, s3_root):
        return StorageConfig(root=s3_root, endpoint_url=s3_server.endpoint_url, claim_lease_s=6.0)

    @pytest.fixture
    def store(self, finished, section, tmp_path):
        store, root = ArtifactStore(section, cache_folder=tmp_path / "cache"), Path(finished.config.storage.root)
        for path in [*root.glob("artifacts/**/*"), *root.glob("records/items/**/*")]:
            if path.is_file():
                store.files.write(path.relative_to(root).as_posix(), path.read_bytes())
        return store

    @pytest.fixture
    def homes(self, tmp_path):
        homes = [Home(tmp_path / name) for name in ("home-a", "home-b")]
        yield homes
        for home in homes:
            home.close()

    def test_they_retrain_one_champion_in_turn(self, store, section, homes):
        a, b = homes
        storage = section.model_dump()
        of_a = small_config(section.root, name="weekly", storage=storage, retrain__gate=EASY_GATE)
        others = {"name": "pocket", "limit": 320}
        of_b = small_config(
            section.root, name="weekly", storage=storage, retrain__gate=EASY_GATE, questions__train=others
        )
        aliases, history = Aliases(store), Retrainings(store, "weekly")
        a.start(of_a)
        assert a.end().startswith("promoted: ")
        (promoted,) = aliases.history("champion")
        first = promoted.to

        b.start(of_b)
        deadline = time.monotonic() + 300
        while not store.files.sizes("claims/retraining"):
            assert time.monotonic() < deadline, b.log.read_text()[-3000:]
            time.sleep(0.1)
        a.start(of_a)
        assert a.end().startswith("nothing done: run ")
        assert b.end().startswith("held: ")  # the held-out questions have decided the one comparison of the gate
        done = history.all()[-1]
        assert done.compared_with == first and done.version != first

        aliases.move("champion", done.version, expected=first, by="Ada, at the second home")
        a.start(of_a)
        told = a.end()
        assert told.startswith("nothing-new: ") and told.endswith(f"(champion: {version_name(done.version)})")
        assert [(entry.from_, entry.to) for entry in aliases.history("champion")] == [
            (None, first),
            (first, done.version),
        ]


def events_of(url: str, name: str) -> list[dict]:
    """The events of a name that the server has; it gets them a moment after they are sent."""
    query = {"filter": {"event": {"name": [name]}}}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = httpx.post(f"{url}/events/filter", json=query, timeout=60, auth=auth_for(url)).raise_for_status().json()
        if found["events"]:
            return found["events"]
        time.sleep(0.3)
    return []


def paused_run(url: str, name: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        of_config = {"name": {"like_": f"{name}-s"}, "state": {"type": {"any_": ["PAUSED"]}}}
        runs = find(url, "flow_runs", flow_runs=of_config)
        if runs:
            return runs[0]["id"]
        time.sleep(0.3)
    raise AssertionError("no run waits for a person")

"""Diagnostics as an artifact: made from stored tables, read back, drawn, and printed by the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.commands.cli import main, read_config
from mralign_core.config import RunConfig
from mralign_core.estimation.matrices import TransitionMatrices
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting.diagnostic_figures import DIAGNOSTIC_CHARTS
from mralign_core.reporting.diagnostic_findings import findings
from mralign_core.schemas.candidates import POLARITIES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.quarantine import write_rows
from mralign_core.storage.tables import known_tables
from tasks.engine.last_run import remember
from tasks.estimate import diagnose_transitions, draw_diagnostics, estimate_transitions, read_diagnostics

NUM_TRACES = 60


def tables() -> dict[str, pd.DataFrame]:
    """Candidates and annotations of random chains of labels; the text is of no matter here."""
    rng, candidates, annotations = np.random.default_rng(0), [], []
    span = {"start": 0, "end": 1, "token_start": 0, "token_end": 1}
    for number in range(NUM_TRACES):
        trace_id, positive = f"t{number:02d}", number % 2
        texts = dict.fromkeys(("question", "prompt", "completion", "answer"), "x")
        ids = {
            "trace_id": trace_id,
            "question_id": trace_id,
            "answers": ["x"],
            "prompt_ids": [0],
            "completion_ids": [0],
            "end_token_id": None,
        }
        kind = {"polarity": POLARITIES[1 - positive], "stratum": ("one_hop", "two_hop")[number % 3 > 0]}
        candidates.append(ids | texts | kind | {"draw": 0, "segments": [span], "reasoning_tokens": 1})
        for segment in range(6):
            count = 1 + (number + segment) % 2
            labels = [
                str(name) for name in rng.choice(PAPER_TAXONOMY.labels[positive : positive + 5], 2, replace=False)
            ]
            given = {"labels": labels[:count], "confidences": [9.0, 8.0][:count]}
            both = {f"{field}_{side}": value for field, value in given.items() for side in "ab"}
            row = {"trace_id": trace_id, "segment": segment, "step": segment, "rule": "agree"}
            annotations.append(row | given | both)
    return {"candidates": pd.DataFrame(candidates), "annotations": pd.DataFrame(annotations)}


def publish(store: ArtifactStore, name: str, frame: pd.DataFrame, folder: Path) -> ArtifactRef:
    folder.mkdir()
    write_rows(folder, f"{name}.parquet", frame.astype(object), known_tables()[name])
    return store.publish(name, name.encode().hex().ljust(64, "0"), folder, parents=[], fingerprint={})


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    root = tmp_path_factory.mktemp("store")
    return read_config("pocket", {"storage.root": str(root), "estimate.num_resamples": 20})


@pytest.fixture(scope="module")
def inputs(config, tmp_path_factory) -> dict[str, ArtifactRef]:
    store, folder = ArtifactStore(config.storage), tmp_path_factory.mktemp("tables")
    made = {name: publish(store, name, frame, folder / name) for name, frame in tables().items()}
    remember(config, **made)
    return made | {"transitions": estimate_transitions.run_here(config, **made)}


@pytest.fixture(scope="module")
def diagnostics(config, inputs) -> ArtifactRef:
    return diagnose_transitions.run_here(config, **inputs)


def pictures(config, inputs, diagnostics):
    figures = draw_diagnostics.run_here(config, inputs["transitions"], diagnostics)
    return ArtifactStore(config.storage).open_directory(figures)


def test_the_artifacts_hold_the_result_and_every_figure(config, inputs, diagnostics):
    store = ArtifactStore(config.storage)
    found = read_diagnostics(store, diagnostics)
    assert found.yields[2].traces == NUM_TRACES and found.used_traces["positive"] == NUM_TRACES // 2
    assert found.strata is not None and set(found.strata.conditioned) == {"one_hop", "two_hop"}
    assert {row.estimator for row in found.estimators} == {"paper", "converged", "frequency", "value", "single label"}
    folder = pictures(config, inputs, diagnostics)
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.svg")}
    assert {path.stem for path in folder.glob("*.png")} == set(DIAGNOSTIC_CHARTS)
    assert all(Image.open(path).width > 700 for path in folder.glob("*.png"))


def test_it_is_found_again_and_made_anew_for_other_weights(config, inputs, diagnostics):
    assert diagnose_transitions.run_here(config, **inputs) == diagnostics
    section = config.reward.model_copy(update={"clip_max": 2.0})
    other = diagnose_transitions.run_here(config.model_copy(update={"reward": section}), **inputs)
    assert other.key != diagnostics.key


def test_a_run_with_one_label_is_compared_with_the_paper_all_the_same(config, inputs, diagnostics):
    section = config.estimate.model_copy(update={"labels_per_segment": "one", "num_resamples": 0})
    one = config.model_copy(update={"estimate": section})
    named = {name: inputs[name] for name in ("candidates", "annotations")}
    named["transitions"] = estimate_transitions.run_here(one, **named)
    made = diagnose_transitions.run_here(one, **named)
    store = ArtifactStore(one.storage)
    assert read_diagnostics(store, made).estimators == read_diagnostics(store, diagnostics).estimators
    assert not (pictures(one, named, made) / "intervals.png").exists()


def test_hidden_labels_are_told_of_as_far_as_their_cost_allows(config, inputs, diagnostics):
    section = config.estimate.model_copy(update={"estimator": "hidden", "num_resamples": 3})
    hidden = config.model_copy(update={"estimate": section})
    named = {name: inputs[name] for name in ("candidates", "annotations")}
    named["transitions"] = estimate_transitions.run_here(hidden, **named)
    store = ArtifactStore(hidden.storage)
    matrices = TransitionMatrices.load(store.open_file(named["transitions"], "transitions.npz"))
    assert matrices.channels is not None and matrices.channels.shape == (3, 15, 16)
    assert matrices.draws["plus"].shape == (3, 17, 17)
    made = diagnose_transitions.run_here(hidden, **named)
    found, usual = read_diagnostics(store, made), read_diagnostics(store, diagnostics)
    assert "EM to convergence on consolidated labels" in found.skipped["hidden labels"]
    rows = {row.estimator: row for row in found.estimators}
    assert rows.keys() - {row.estimator for row in usual.estimators} == {"hidden"}
    assert rows["hidden"].l1["plus"] > 0.01 and rows["hidden"].shift.mean_abs_log_ratio > 0.01
    assert found.discrimination[0].estimator == "em_converged"
    assert any("hidden labels" in sentence for sentence in findings(found))
    pictures(hidden, named, made)


def test_the_command_prints_the_table_and_writes_the_figure(config, inputs, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "shift.png"
    options = ["--config", "pocket", f"--set=storage.root={json.dumps(config.storage.root)}", "--figure", str(picture)]
    monkeypatch.setattr(sys, "argv", ["mralign", "sensitivity", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    out = capsys.readouterr().out
    assert not stopped.value.code
    for text in ("damping", "prior", "clip", "0.6 (this run)", "cross 1", str(picture)):
        assert text in out
    assert Image.open(picture).width > 700


def test_the_command_without_a_run_says_which_stage_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mralign", "sensitivity", f"--set=storage.root={json.dumps(str(tmp_path))}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "run stage" in capsys.readouterr().err

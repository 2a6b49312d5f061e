"""The tasks from labels to weights: what they publish, what they count, and with which labels."""

import numpy as np
import pandas as pd
import pytest
import yaml

from flows.commands.cli import read_config
from mralign_core.errors import DataError
from mralign_core.estimation.matrices import TransitionMatrices, estimate_transitions
from mralign_core.estimation.traces import labelled_traces
from mralign_core.estimation.weights import weigh_segments
from mralign_core.label_sets import load_label_set
from mralign_core.method.placebos import permuted_polarities
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from tasks.estimate import estimate_transitions as estimate_task
from tasks.reward import weigh_segments as weigh_task
from tests.annotated_files import random_rows

STRATA = ("one-hop", "two-hop")


@pytest.fixture(params=["the paper's labels", "four labels"])
def setting(request, tmp_path):
    """A config, and the candidates and annotations of some random traces in its store."""
    overrides = {"storage.root": str(tmp_path / "store"), "estimate.num_resamples": 30, "seed": 3}
    if request.param == "four labels":
        labels = [{"name": name, "definition": f"does {name}"} for name in ("ask", "tell", "check", "end")]
        (tmp_path / "labels.yaml").write_text(yaml.safe_dump({"labels": labels}))
        overrides["annotate.label_set"] = str(tmp_path / "labels.yaml")
    config = read_config("pocket", overrides)
    taxonomy = load_label_set(config.annotate.label_set).taxonomy
    rows = random_rows(np.random.default_rng(1), 160, taxonomy, STRATA)
    store, refs = ArtifactStore(config.storage), []
    for table, content in zip((CANDIDATES, ANNOTATIONS), rows, strict=True):
        folder = tmp_path / table.name
        frame = pd.DataFrame(content, columns=list(table.columns)).astype(object)
        write_table(folder, f"{table.name}.parquet", frame, table)
        refs.append(store.publish(table.name, "made", folder, parents=[], fingerprint={}, table=table.name))
    return config, taxonomy, labelled_traces(*map(pd.DataFrame, rows), taxonomy=taxonomy), store, refs


def test_matrices_and_weights_are_those_of_the_core(setting):
    config, taxonomy, traces, store, refs = setting
    transitions = estimate_task.run_here(config, *refs)
    found = TransitionMatrices.load(store.open_file(transitions, "transitions.npz"))
    expected = estimate_transitions(traces, config.estimate, taxonomy, rng=np.random.default_rng(3))
    assert found.state_names == taxonomy.state_names and set(found.strata) == set(STRATA)
    for name, estimate in expected.estimates.items():
        np.testing.assert_array_equal(found.estimates[name].p, estimate.p)
        np.testing.assert_array_equal(found.draws[name], expected.draws[name])
    counts = store.manifest(transitions).counts
    assert counts["traces"] == len(traces) and counts["strata with own matrices"] == 2
    assert counts["transitions all"] == pytest.approx(counts["transitions plus"] + counts["transitions minus"])

    rewards = weigh_task.run_here(config, *refs, transitions)
    frame = store.read_table(rewards, "weights.parquet")
    pd.testing.assert_frame_equal(
        frame, weigh_segments(traces, expected, config.reward, confidence=0.95), check_dtype=False
    )
    counts = store.manifest(rewards).counts
    assert counts["segments"] == rewards.rows == len(frame)
    assert counts["clipped"] == frame["clipped"].sum()


def test_placebos_alter_the_matrices_or_the_weights_and_say_so(setting, tmp_path):
    config, taxonomy, traces, store, refs = setting

    def run(**fields):
        sections = {
            name: getattr(config, name).model_copy(update=fields.get(name, {})) for name in ("estimate", "reward")
        }
        altered = config.model_copy(update=sections)
        transitions = estimate_task.run_here(altered, *refs)
        rewards = weigh_task.run_here(altered, *refs, transitions)
        matrices = TransitionMatrices.load(store.open_file(transitions, "transitions.npz")).estimates
        return matrices, store.read_table(rewards, "weights.parquet"), store.manifest(rewards).counts

    true, weights, _ = run()
    polarities = permuted_polarities([t.trace_id for t in traces], [t.polarity == "positive" for t in traces], seed=3)
    dealt = [
        trace._replace(polarity="positive" if sign else "negative")
        for trace, sign in zip(traces, polarities, strict=True)
    ]
    expected = estimate_transitions(dealt, config.estimate, taxonomy)
    permuted, by_permuted, _ = run(estimate={"permute_polarity": True})
    for name in ("plus", "minus", "all"):
        np.testing.assert_allclose(permuted[name].p, expected.estimates[name].p)
    np.testing.assert_allclose(permuted["all"].p, true["all"].p)
    assert np.abs(permuted["plus"].p - true["plus"].p).max() > 0.01
    # Traces are still weighed as what they are.
    as_they_are = weigh_segments(traces, expected, config.reward, confidence=0.95)
    logs = np.log([table["ratio"].to_numpy(float) for table in (by_permuted, as_they_are, weights)])
    moves = logs[1] != 0
    powers = logs[0][moves] / logs[1][moves]
    np.testing.assert_allclose(powers, powers[0], err_msg="one power for all")
    assert powers[0] != 1
    size, true_size = (((table["weight"].to_numpy(float) - 1) ** 2).mean() for table in (by_permuted, weights))
    assert size == pytest.approx(true_size, rel=1e-6), "as large as true ones, after the clip"
    np.testing.assert_allclose(by_permuted["weight"].to_numpy(float), np.exp(logs[0].clip(-1, 1)))

    _, borrowed, counts = run(reward={"placebo": "other_traces"})
    assert counts["clipped"] == borrowed["clipped"].sum()
    assert (borrowed["weight"] != weights["weight"]).mean() > 0.3


def test_labels_of_another_set_are_refused(setting, tmp_path):
    config, _, _, _, refs = setting
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"labels": [{"name": "x", "definition": "does x"}]}))
    other = read_config(
        "pocket", {"storage.root": config.storage.root, "annotate.label_set": str(tmp_path / "other.yaml")}
    )
    with pytest.raises(DataError, match="not all in the taxonomy; it has x"):
        estimate_task.run_here(other, *refs)

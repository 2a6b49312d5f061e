"""`mralign doctor` and the run's page say what is wrong with trainings, from what the store has of them."""

import inspect
import json

import numpy as np
import pandas as pd
import pytest

from mralign_core.config import RunConfig, StorageConfig, TrainConfig
from mralign_core.reporting.training_health import examine, read_trainings
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.policy_logps import POLICY_LOGPS
from mralign_core.schemas.scores import SCORES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.schemas.training_metrics import TRAINING_METRICS
from mralign_core.storage import ArtifactStore, RunRecords
from mralign_core.storage.tables import write_table
from tasks import publish
from tests.core.training.tiny import make_candidates, make_segment_weights

NUM_STEPS = 24
RUN = "5e1f0000-0000-4000-8000-00000000000d"


class Trained:
    """Trainings that are made up, in a store."""

    def __init__(self, folder):
        self.storage = StorageConfig(root=str(folder / "store"))
        self.store = ArtifactStore(self.storage)
        self._folder = folder
        candidates = make_candidates(20)
        weights = make_segment_weights(candidates).assign(clipped=True)
        self.trace_ids, self.is_positive = candidates["trace_id"], candidates["polarity"] == "positive"
        self.traces = self._put("candidates", candidates, CANDIDATES)
        self.weights = self._put("weights", weights, SEGMENT_WEIGHTS)

    def _put(self, stage, frame, table, key="0" * 64, parents=(), file="", **facts):
        folder = self._folder / f"{stage}-{key[:4]}"
        folder.mkdir()
        write_table(folder, file or f"{stage}.parquet", frame, table)
        return self.store.publish(stage, key, folder, parents=parents, **{"fingerprint": {}, **facts})

    def adapter(self, variant, negative, parents, **settings):
        rise = np.linspace(0, 1, NUM_STEPS)
        metrics = pd.DataFrame(dict.fromkeys(TRAINING_METRICS.columns, rise)).assign(
            step=range(1, NUM_STEPS + 1),
            implicit_reward_positive=3 * rise,
            implicit_reward_negative=negative * rise,
            loss=0.6 - 0.1 * rise,
        )
        return self._put(
            "adapter",
            metrics,
            TRAINING_METRICS,
            variant.replace("_", "").encode().hex().ljust(64, "0")[:64],
            [self.traces, *parents],
            "metrics.parquet",
            fingerprint={"variant": variant, "settings": TrainConfig(**settings).settings_of(variant)},
            counts={"positive": 10, "negative": 10},
        )

    def policy_logps(self, variant, adapter, rewards):
        """Traces of 20, 21, … tokens, every other one positive, with an implicit reward each."""
        frame = pd.DataFrame({"trace_id": self.trace_ids, "num_tokens": range(20, 40), "implicit_reward": rewards})
        frame = frame.assign(reference_logp=0.0, policy_logp=0.0, kl=0.0, segments=[[]] * 20)
        frame["logps"] = [np.zeros(each, dtype="float32") for each in frame["num_tokens"]]
        key = (variant.replace("_", "") + adapter.key[:6]).encode().hex().ljust(64, "0")[:64]
        return self._put("policy-logps", frame, POLICY_LOGPS, key, [self.traces, adapter], "policy.parquet")

    def scores(self, variant, tokens):
        known = {"question_id": [f"q{n}" for n in range(30)], "num_tokens": tokens, "variant": variant, "draw": 0}
        texts = {"source": "s", "scoring": "exact_match", "stratum": "", "completion": "", "thinking": None}
        rest = {"answer": None, "outcome": "ok", "num_prompt_tokens": 9}
        matches = dict.fromkeys(("em_thought", "em_answer", "contains_answer"))
        frame = pd.DataFrame({**known, **texts, **rest, **matches})
        return self._put("scores", frame, SCORES, variant.replace("_", "").encode().hex().ljust(64, "0")[:64])


@pytest.fixture
def trained(tmp_path):
    return Trained(tmp_path)


@pytest.fixture
def run(trained):
    """A run whose KTO is sound, and whose MR-ALIGN has a clip on all weights and answers twice as long."""
    artifacts = {
        "adapter:kto": trained.adapter("kto", -4.0, []),
        "adapter:mr_align": trained.adapter("mr_align", -4.0, [trained.weights], beta=0.2),
        "scores:on": trained.scores("on", 40),
        "scores:kto": trained.scores("kto", 44),
        "scores:mr_align": trained.scores("mr_align", 80),
    }
    RunRecords(trained.store, "pocket").add(RUN, {}, artifacts, goes_on=False)
    return artifacts


def test_the_last_run_and_an_adapter_are_examined(trained, run, mralign):
    here = f"--set=storage.root={trained.storage.root}"
    code, out, _ = mralign("doctor", here)
    lines = out.splitlines()
    assert code == 1 and lines[:2] == ["KTO", "  nothing that the doctor knows is wrong with it"]
    assert "weights clipped: 100% of the weights are at a bound of the clip" in out
    assert "length drift: answers to held-out questions have 2.00 times the tokens" in out and "Try: " in out
    assert mralign("doctor", RUN[:8], here)[:2] == (code, out)
    code, out, _ = mralign("doctor", f"adapter/{run['adapter:mr_align'].key[:16]}", "--json", here)
    assert [each["name"] for each in json.loads(out)["mr_align"]] == ["weights clipped"]  # no answers are known of it
    assert mralign("doctor", f"adapter/{run['adapter:kto'].key[:16]}", here)[0] == 0


def test_what_has_no_adapter_is_an_error_that_says_so(trained, mralign):
    code, _, err = mralign("doctor", f"candidates/{'0' * 64}", f"--set=storage.root={trained.storage.root}")
    assert code not in (0, 1) and "has no adapter: train one" in err


def test_all_that_is_known_of_a_training_is_read_and_what_is_gone_is_not_known(trained, run):
    record = read_trainings(trained.store, run)["mr_align"]
    assert (record.beta, record.undesirable_weight, record.num_positive) == (0.2, 1.5, 10)
    assert record.weights is not None and len(record.weights) == 40
    lengths = [each for each in (record.positive_lengths, record.negative_lengths) if each is not None]
    assert [len(each) for each in lengths] == [10, 10] and lengths[0].min() >= 6
    for ref in (trained.traces, trained.weights):
        trained.store.remove(ref.stage, ref.key)
    record = read_trainings(trained.store, run)["mr_align"]
    assert record.positive_lengths is record.weights is record.clipped is None
    assert len(record.metrics) == NUM_STEPS


def test_rewards_that_follow_length_in_the_traces_after_training_are_told(trained):
    """Of our own loop, whose curves don't have it."""
    sound, other = trained.adapter("kto", -4.0, []), trained.adapter("mr_align", -5.0, [])
    lengths = np.arange(20)
    hacked = trained.policy_logps("kto", sound, lengths - 6.0 * ~trained.is_positive)
    assert faults_of(trained, sound) == faults_of(trained, other) == []
    assert faults_of(trained, sound, hacked) == ["reward hacking by length"]
    assert faults_of(trained, other, hacked) == [], "it is of another adapter"
    learnt = trained.policy_logps("mr_align", other, np.where(trained.is_positive, lengths, -lengths))
    assert faults_of(trained, other, learnt) == [], "longer rows move further, each class its way"
    trained.store.remove(trained.traces.stage, trained.traces.key)
    assert faults_of(trained, sound, hacked) == [], "which traces were positive is gone"


def faults_of(trained, adapter, after=None):
    artifacts = {"adapter:kto": adapter} | ({"policy-logps:kto": after} if after else {})
    return [fault.name for fault in examine(trained.store, artifacts)["kto"]]


def test_the_run_says_it_in_its_log_and_on_its_page(trained, run, monkeypatch, caplog):
    pages = {}
    monkeypatch.setattr(publish, "_publish", lambda artifact: pages.update({artifact.key: artifact.markdown}))
    config = RunConfig.model_validate({"questions": {"train": "nq_open"}, "storage": trained.storage.model_dump()})
    trainings = {name: ref for name, ref in run.items() if name.startswith("adapter:")}
    inspect.unwrap(publish.show_health)(config, trainings)
    assert "training doctor: MR-ALIGN: weights clipped" in caplog.text and "length drift" not in caplog.text
    caplog.clear()
    inspect.unwrap(publish.show_health)(config, run)
    assert "training doctor: MR-ALIGN: length drift" in caplog.text and "weights clipped" not in caplog.text
    text = pages["training-doctor"]
    assert "**KTO**\n\n- nothing that the doctor knows" in text and "- **weights clipped**: 100%" in text

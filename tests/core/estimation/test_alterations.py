"""Placebo and normalised weights of a corpus, read from the files of the stages."""

import numpy as np
import pandas as pd
import pytest

from mralign_core.config import EstimateConfig, RewardConfig
from mralign_core.errors import DataError
from mralign_core.estimation.alterations import weigh_corpus, with_permuted_polarities
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.estimation.traces import labelled_traces
from mralign_core.estimation.weights import Weigher, weigh_segments
from mralign_core.method.placebos import permuted_polarities
from mralign_core.method.segment_weights import neutral_weight
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from tests.annotated_files import random_rows, taxonomy_of, write_files

TAXONOMY = taxonomy_of(6)
SEED = 5


class Corpus:
    """Random annotated traces on disk, with spans of random lengths, and what a plain Weigher makes of them."""

    def __init__(self, folder, rng):
        candidates, annotations = random_rows(rng, 120, TAXONOMY)
        num_segments = pd.Series([row["trace_id"] for row in annotations]).value_counts()
        for row in candidates:
            row["segments"], start = [], 0
            for place in range(num_segments.get(row["trace_id"], 1)):
                end = start + int(rng.integers(0, 9))
                row["segments"].append({"start": place, "end": place + 1, "token_start": start, "token_end": end})
                start = end
            row["completion"], row["completion_ids"] = "x" * 20, list(range(start + 2))
        self.files = write_files(folder, candidates, annotations)
        self.tokens = {
            row["trace_id"]: [s["token_end"] - s["token_start"] for s in row["segments"]] for row in candidates
        }
        self.polarity = {row["trace_id"]: row["polarity"] for row in candidates}
        self.traces = labelled_traces(pd.DataFrame(candidates), pd.DataFrame(annotations), taxonomy=TAXONOMY)
        section = EstimateConfig(num_resamples=20)
        self.matrices = estimate_transitions(self.traces, section, TAXONOMY, rng=np.random.default_rng(0))
        self.is_labelled = np.array([bool(t.steps[step]) for t in self.traces for step in t.step_of_segment])

    def read(self, batch_rows=1 << 18):
        return read_trace_batches(*self.files, taxonomy=TAXONOMY, batch_rows=batch_rows)

    def weigh(self, batch_rows=1 << 18, seed=SEED, **fields):
        section = RewardConfig(**fields)
        weigher = Weigher(self.matrices, section, confidence=0.95)
        pieces = weigh_corpus(self.read(batch_rows), weigher, section, seed=seed, candidates=self.files.candidates)
        return pd.concat([pd.DataFrame({k: np.asarray(v) for k, v in piece.items()}) for piece in pieces])

    def plain(self, **fields):
        return weigh_segments(self.traces, self.matrices, RewardConfig(**fields), confidence=0.95)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("corpus"), np.random.default_rng(3))


ALTERED = [
    {"placebo": "within_trace"},
    {"placebo": "other_traces"},
    {"placebo": "other_traces", "form": "signed"},
    {"normalize": "mean_one"},
    {"normalize": "centred", "form": "signed", "gamma": 2.0},
    {"normalize": "per_segment", "form": "linear"},
]


def same(one, other):
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), check_dtype=False)


def test_without_a_switch_the_weights_are_those_of_eq_10(corpus):
    same(corpus.weigh(batch_rows=50), corpus.plain())


@pytest.mark.parametrize("fields", ALTERED)
def test_how_the_file_is_read_does_not_matter(corpus, fields):
    same(corpus.weigh(batch_rows=50, **fields), corpus.weigh(**fields))


@pytest.mark.parametrize("fields", ALTERED)
def test_rows_keep_the_contract_and_unlabelled_segments_their_weight(corpus, fields):
    form = fields.get("form", "ratio")
    found, plain = corpus.weigh(**fields), corpus.plain(form=form)
    SEGMENT_WEIGHTS.require(found.astype(object))
    pd.testing.assert_frame_equal(found[["trace_id", "segment"]], plain[["trace_id", "segment"]], check_dtype=False)
    if "placebo" in fields:
        assert (found["weight"].to_numpy()[~corpus.is_labelled] == neutral_weight(form)).all()
        assert (found["weight"] != plain["weight"]).mean() > 0.3


def test_within_a_trace_whole_records_are_permuted(corpus):
    found, plain = corpus.weigh(placebo="within_trace"), corpus.plain()
    values = [name for name in SEGMENT_WEIGHTS.columns if name != "segment"]
    before, after = (frame[values].sort_values(values, ignore_index=True) for frame in (plain, found))
    same(after, before)


def test_from_another_trace_come_its_records_in_order(corpus):
    found, plain = corpus.weigh(placebo="other_traces"), corpus.plain()
    values = ["weight", "ratio", "clipped", "support", "weight_low", "weight_high"]

    def records(frame):
        labelled = frame[corpus.is_labelled].fillna(-1.0)  # NaN, where there is no interval, equals nothing
        return {
            name: list(rows.itertuples(index=False, name=None)) for name, rows in labelled.groupby("trace_id")[values]
        }

    own, borrowed = records(plain), records(found)
    for trace_id, taken in borrowed.items():
        lenders = [
            other
            for other, lent in own.items()
            if other != trace_id
            and corpus.polarity[other] == corpus.polarity[trace_id]
            and taken == [lent[n % len(lent)] for n in range(len(taken))]
        ]
        assert lenders, trace_id


def test_the_clip_comes_before_the_placebo(corpus):
    fields = {"clip_min": 0.9, "clip_max": 1.1}
    found = corpus.weigh(placebo="within_trace", **fields)
    assert found["weight"].between(0.9, 1.1).all()
    assert (found["clipped"] == ((found["ratio"] < 0.9) | (found["ratio"] > 1.1))).all()


@pytest.mark.parametrize("placebo", ["none", "within_trace"])
def test_normalised_weights_are_one_on_average_over_a_traces_tokens_and_clip_flags_stay(corpus, placebo):
    found, before = corpus.weigh(normalize="mean_one", placebo=placebo), corpus.weigh(placebo=placebo)
    for trace_id, rows in found.groupby("trace_id"):
        tokens = np.array(corpus.tokens[trace_id])
        if tokens.sum():
            assert rows["weight"].to_numpy() @ tokens / tokens.sum() == pytest.approx(1), trace_id
        scale = rows["weight"].to_numpy() / before["weight"].to_numpy()[before["trace_id"] == trace_id]
        assert scale == pytest.approx(scale[0])
    kept = ["ratio", "clipped", "support"]
    same(found[kept], before[kept])
    shares = found[["weight_low", "weight_high"]].div(found["weight"], axis=0)
    same(shares, before[["weight_low", "weight_high"]].div(before["weight"], axis=0))


def test_signed_weights_are_the_logarithms_of_the_papers(corpus):
    signed, plain = corpus.weigh(form="signed", gamma=2.0), corpus.plain()
    assert signed["weight"].to_numpy() == pytest.approx(2 * np.log(plain["weight"].to_numpy()))
    bounds = signed[["weight_low", "weight_high"]].dropna()
    assert len(bounds) and (bounds["weight_low"] <= bounds["weight_high"]).all()
    same(signed[["ratio", "clipped", "support"]], plain[["ratio", "clipped", "support"]])
    assert (signed["weight"] < 0).any()


def test_centred_weights_carry_on_average_what_a_move_carries_that_tells_nothing(corpus):
    for form in ("ratio", "signed"):
        found = corpus.weigh(normalize="centred", form=form)
        for trace_id, rows in found.groupby("trace_id"):
            tokens = np.array(corpus.tokens[trace_id])
            if tokens.sum():
                assert rows["weight"].to_numpy() @ tokens / tokens.sum() == pytest.approx(neutral_weight(form)), (
                    trace_id
                )


def test_a_lone_trace_of_a_polarity_has_nobody_to_borrow_from(corpus, tmp_path):
    candidates, annotations = random_rows(np.random.default_rng(0), 20, TAXONOMY)
    labelled = {row["trace_id"] for row in annotations if row["labels"]}
    lone = min(labelled)
    rows = [row | {"polarity": "negative" if row["trace_id"] == lone else "positive"} for row in candidates]
    files = write_files(tmp_path, rows, annotations)
    section = RewardConfig(placebo="other_traces")
    batches = read_trace_batches(*files, taxonomy=TAXONOMY)
    with pytest.raises(DataError, match=rf"trace '{lone}' is the only labelled one that is negative"):
        list(
            weigh_corpus(
                batches,
                Weigher(corpus.matrices, section, confidence=0.95),
                section,
                seed=0,
                candidates=files.candidates,
            )
        )


def test_polarities_are_dealt_out_over_all_batches(corpus):
    permuted = list(with_permuted_polarities(corpus.read(50), corpus.read(50), seed=SEED))
    assert len(permuted) > 1
    found = {
        name: bool(sign) for b in permuted for name, sign in zip(b.trace_ids.to_pylist(), b.is_positive, strict=True)
    }
    ids = [trace.trace_id for trace in corpus.traces]
    true = [trace.polarity == "positive" for trace in corpus.traces]
    assert found == dict(zip(ids, permuted_polarities(ids, true, seed=SEED).tolist(), strict=True))
    assert sum(found.values()) == sum(true)
    assert list(found.values()) != true

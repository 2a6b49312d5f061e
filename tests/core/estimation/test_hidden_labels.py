"""Matrices of hidden labels: from files to P⁺, P⁻ and P, by stratum, with bootstrap draws."""

import numpy as np
import pytest

from flows.commands.cli import read_config
from mralign_core.config import EstimateConfig
from mralign_core.errors import ConfigError
from mralign_core.estimation.corpus import count_corpus
from mralign_core.estimation.estimators import estimate_tables, make_estimator
from mralign_core.estimation.hidden_labels import RESAMPLE_TOLERANCE, RIGHT_PRIOR, WRONG_PRIOR
from mralign_core.estimation.matrices import TransitionMatrices, estimate_corpus
from mralign_core.estimation.reading import read_trace_batches
from mralign_core.method.by_question import question_kinds, resample_questions
from mralign_core.method.hidden_chain import channel_prior, fit_channels, fit_hidden_chain, votes_by_step
from tests.annotated_files import random_rows, taxonomy_of, with_votes, write_files

TAXONOMY = taxonomy_of(5)
K = TAXONOMY.num_states
HIDDEN = EstimateConfig(estimator="hidden", num_resamples=4, prior=0.2)
STRATA = ("one-hop", "two-hop")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    rng = np.random.default_rng(5)
    candidates, annotations = random_rows(rng, 150, TAXONOMY, STRATA)
    for number, row in enumerate(candidates):
        row["question_id"] = f"question {number // 2}"
    return write_files(tmp_path_factory.mktemp("voted"), candidates, with_votes(rng, annotations, TAXONOMY))


def corpus_of(files, **options):
    batches = read_trace_batches(*files, taxonomy=TAXONOMY, **{"with_votes": True, **options})
    return count_corpus(batches, K, keep_traces=True)


@pytest.fixture(scope="module")
def corpus(files):
    return corpus_of(files)


@pytest.fixture(scope="module")
def matrices(corpus):
    return estimate_corpus(corpus, HIDDEN, TAXONOMY, rng=np.random.default_rng(2))


class Plain:
    """The same by the functions of the method, from a list of traces."""

    def __init__(self, files):
        batches = list(read_trace_batches(*files, taxonomy=TAXONOMY, with_votes=True))
        self.votes = []
        for batch in batches:
            assert batch.votes is not None
            self.votes += [batch.votes[batch.trace_of_step == trace] for trace in range(len(batch.trace_ids))]
        self.is_positive = np.concatenate([batch.is_positive for batch in batches])
        self.strata = np.concatenate([batch.strata.to_pylist() for batch in batches])
        groups = [self.steps(self.is_positive), self.steps(~self.is_positive)]
        prior = channel_prior(K - 2, RIGHT_PRIOR, WRONG_PRIOR)
        self.channels = fit_channels(
            groups, prior=0.2, prior_of_channels=prior, num_iterations=1000, tolerance=1e-6
        ).channels

    def steps(self, chosen, times=None):
        """The steps of the chosen traces, each as often as told."""
        copies = np.where(chosen, 1 if times is None else times, 0)
        traces = np.repeat(np.arange(len(chosen)), copies)
        votes = [self.votes[trace] for trace in traces]
        return votes_by_step(np.concatenate(votes), np.repeat(np.arange(len(votes)), list(map(len, votes))), K)

    def classes(self, stratum):
        positive = self.is_positive
        of = np.ones_like(positive) if stratum is None else self.strata == stratum
        return {"plus": positive & of, "minus": ~positive & of, "all": of}

    def fit(self, steps, **options):
        return fit_hidden_chain(
            steps, self.channels, **{"prior": 0.2, "num_iterations": 1000, "tolerance": 1e-6, **options}
        )


@pytest.fixture(scope="module")
def plain(files):
    return Plain(files)


def test_matrices_are_those_of_the_method(matrices, plain):
    np.testing.assert_allclose(matrices.channels, plain.channels, atol=1e-9)
    assert set(matrices.strata) == set(STRATA)
    for stratum in (None, *STRATA):
        found = matrices.estimates if stratum is None else matrices.strata[stratum]
        for name, chosen in plain.classes(stratum).items():
            expected = plain.fit(plain.steps(chosen))
            np.testing.assert_allclose(found[name].p, expected.p, atol=1e-9)
            np.testing.assert_allclose(found[name].counts, expected.counts, atol=1e-6)
            np.testing.assert_allclose(found[name].log_posterior, expected.log_posterior)
    assert np.abs(matrices.estimates["plus"].p - matrices.estimates["minus"].p).max() > 0.02


def test_a_resample_is_the_matrix_of_the_questions_drawn(matrices, corpus, plain):
    kinds = question_kinds(corpus.voted.questions, plain.is_positive)
    drawn = resample_questions(kinds, HIDDEN.num_resamples, np.random.default_rng(2))
    for stratum in (None, *STRATA):
        found, draws = (
            (matrices.estimates, matrices.draws)
            if stratum is None
            else (matrices.strata[stratum], matrices.strata_draws[stratum])
        )
        for name, chosen in plain.classes(stratum).items():
            for resample, times in enumerate(drawn):
                steps = plain.steps(chosen, times[corpus.voted.questions])
                expected = plain.fit(steps, first_p=found[name].p, tolerance=RESAMPLE_TOLERANCE)
                np.testing.assert_allclose(draws[name][resample], expected.p, atol=1e-4)
            assert np.abs(draws[name] - found[name].p).max() > 0.02


@pytest.mark.parametrize("batch_rows", [1, 37])
def test_batches_and_labels_kept_do_not_matter(files, matrices, batch_rows):
    corpus = corpus_of(files, batch_rows=batch_rows, labels_per_segment="one")
    again = estimate_corpus(corpus, HIDDEN, TAXONOMY, rng=np.random.default_rng(2))
    for name, estimate in matrices.estimates.items():
        np.testing.assert_allclose(again.estimates[name].p, estimate.p, atol=1e-12)
        np.testing.assert_allclose(again.draws[name], matrices.draws[name], atol=1e-6)


def test_a_file_keeps_the_channels(matrices, corpus, tmp_path):
    matrices.save(tmp_path / "hidden.npz")
    np.testing.assert_array_equal(TransitionMatrices.load(tmp_path / "hidden.npz").channels, matrices.channels)
    estimate_corpus(corpus, EstimateConfig(), TAXONOMY).save(tmp_path / "em.npz")
    assert TransitionMatrices.load(tmp_path / "em.npz").channels is None


def test_it_says_when_it_did_not_converge(corpus, caplog):
    estimate_corpus(corpus, HIDDEN, TAXONOMY)
    assert not caplog.text
    estimate_corpus(corpus, EstimateConfig(estimator="hidden", tolerance=0, num_resamples=0), TAXONOMY)
    assert "did not converge in 1000 iterations for the channels; raise estimate.tolerance (0)" in caplog.text
    strata = [stratum for stratum in corpus.strata if f"for plus in stratum {stratum!r}" in caplog.text]
    assert strata == list(corpus.strata)


def test_label_sets_alone_are_refused(files, corpus):
    with pytest.raises(ValueError, match="with_votes=True"):
        estimate_corpus(corpus_of(files, with_votes=False), HIDDEN, TAXONOMY)
    pairs = corpus.pairs()
    tables = pairs.multiplicities[None]
    with pytest.raises(ValueError, match="from votes"):
        make_estimator(HIDDEN, K)
    with pytest.raises(ValueError, match="from votes"):
        estimate_tables(HIDDEN, pairs, tables, tables)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"reward.leave_own_question_out": True}, "estimate.estimator 'hidden' makes them of votes"),
        ({"estimate.damping": 0.5}, "damping"),
        ({"estimate.num_iterations": 7}, "num_iterations"),
    ],
)
def test_settings_that_it_can_not_follow_are_refused(overrides, problem):
    assert read_config("pocket", {"estimate.estimator": "hidden"}).estimate.estimator == "hidden"
    with pytest.raises(ConfigError, match=problem):
        read_config("pocket", {"estimate.estimator": "hidden", **overrides})

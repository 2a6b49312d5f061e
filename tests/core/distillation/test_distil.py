"""Annotators that learn from made-up traces: what they know, how sure they are, and what they may not have seen."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mralign_core.distillation.annotator import read_annotator, write_annotator
from mralign_core.distillation.calibration import Calibration, calibration_error, fit_calibration
from mralign_core.distillation.fitting import LabelledTraces, distil, is_same_encoder
from mralign_core.distillation.scores import escalation_curve, macro_f1, score_annotator
from mralign_core.errors import DataError
from mralign_core.models.sentence_encoder import load_sentence_encoder
from tests.core.distillation.made_up_traces import LABELS, made_up


@pytest.fixture(scope="module")
def half_garbled():
    return distil(made_up(60, garbled=0.5), LABELS)


def test_it_learns_words_and_moves(half_garbled):
    new = made_up(40, seed=9, garbled=0.5)
    votes = half_garbled.annotator.votes(new.texts)
    given = [segment[0] for trace in new.labels for segment in trace]
    right = np.mean([vote.labels[0] == label for vote, label in zip(votes, given, strict=True)])
    # Half of the words tell nothing: without the moves between labels it would be 1/2 + 1/2 · 1/3.
    assert right > 0.75


def test_held_out_figures_foretell_those_on_new_traces(half_garbled):
    seen = score_annotator(half_garbled.held_out, half_garbled.given, LABELS)
    new = made_up(200, seed=5, garbled=0.5)
    given = np.array([[label in segment for label in LABELS] for trace in new.labels for segment in trace])
    unseen = score_annotator(half_garbled.annotator.confidences(new.texts), given, LABELS)
    assert abs(seen.accuracy - unseen.accuracy) < 0.05 and abs(seen.macro_f1 - unseen.macro_f1) < 0.05
    assert seen.calibration_error < 0.06 and unseen.calibration_error < 0.06


def test_figures_are_of_questions_that_were_not_seen():
    """Where nothing but a question's own word tells the label, held-out figures are those of chance."""
    rng = np.random.default_rng(0)
    texts, labels, questions = [], [], []
    for number in range(60):
        label = LABELS[rng.integers(3)]
        for _ in range(4):
            texts.append([f"word{number}", f"word{number}"])
            labels.append([[label], [label]])
            questions.append(f"q{number}")
    made = distil(LabelledTraces(texts, labels, questions), LABELS)
    assert score_annotator(made.held_out, made.given, LABELS).accuracy < 0.55
    votes = made.annotator.votes(texts)
    assert np.mean([vote.labels[0] == labels[number // 2][0][0] for number, vote in enumerate(votes)]) > 0.95


def test_two_labels_of_a_segment_are_both_given():
    traces = made_up(30)
    both = [[[*segment, "beta"] if segment == ["alpha"] else segment for segment in trace] for trace in traces.labels]
    made = distil(traces._replace(labels=both), LABELS)
    said = {tuple(sorted(vote.labels)) for vote in made.annotator.votes([["recall entity1", "therefore entity2"]])}
    assert ("alpha", "beta") in said and ("gamma",) in said
    assert score_annotator(made.held_out, made.given, LABELS).macro_f1 > 0.95


def test_it_is_the_same_each_time_and_from_its_files(half_garbled, tmp_path):
    again = distil(made_up(60, garbled=0.5), LABELS)
    for name, made in (("one", half_garbled), ("two", again)):
        (tmp_path / name).mkdir()
        write_annotator(made.annotator, tmp_path / name)
    files = ["annotator.safetensors", "annotator.json"]
    assert [(tmp_path / "one" / each).read_bytes() for each in files] == [
        (tmp_path / "two" / each).read_bytes() for each in files
    ]
    read = read_annotator(*(tmp_path / "one" / each for each in files))
    texts = made_up(2, seed=3).texts
    np.testing.assert_array_equal(read.confidences(texts), half_garbled.annotator.confidences(texts))


def labels_that_no_word_tells():
    """What each text stands for, and traces whose labels go by it."""
    rng = np.random.default_rng(0)
    secret = {f"entity{number}": number % 3 for number in range(600)}
    texts = [[f"entity{rng.integers(600)}" for _ in range(6)] for _ in range(80)]
    labels = [[[LABELS[secret[text]]] for text in trace] for trace in texts]
    traces = LabelledTraces(texts, labels, [f"q{number}" for number in range(80)])
    return secret, traces


def test_vectors_of_an_encoder_are_used():
    """Labels that no word tells, and the encoder does."""
    secret, traces = labels_that_no_word_tells()

    def encode(given):
        return np.eye(3)[[secret.get(text, 0) for text in given]]

    blind, seeing = distil(traces, LABELS), distil(traces, LABELS, encode=encode, encoder="vectors")
    accuracies = [score_annotator(made.held_out, made.given, LABELS).accuracy for made in (blind, seeing)]
    assert accuracies[0] < 0.7 and accuracies[1] > 0.95
    assert seeing.annotator.about.encoder == "vectors"
    probe = seeing.annotator.about.encoder_probe
    assert is_same_encoder(lambda given: encode(given) + 1e-4, probe), "what another machine makes of it"
    assert not is_same_encoder(lambda given: encode(given)[:, ::-1], probe)
    assert not is_same_encoder(lambda given: encode(given)[:, :2], probe)


def test_states_of_a_language_model_are_put_on_one_scale(tmp_path):
    """Labels that small dimensions tell, beside one that is a thousand times larger and tells nothing."""
    secret, traces = labels_that_no_word_tells()
    rng = np.random.default_rng(1)

    def encode(trace):
        told = np.eye(3)[[secret.get(text, 0) for text in trace]]
        return np.concatenate([told, 1000 + 10 * rng.standard_normal((len(trace), 1))], axis=1)

    seeing = distil(traces, LABELS, encode=encode, encoder="folder", reads_traces=True)
    assert score_annotator(seeing.held_out, seeing.given, LABELS).accuracy > 0.95
    write_annotator(seeing.annotator, tmp_path)
    read = read_annotator(tmp_path / "annotator.safetensors", tmp_path / "annotator.json")
    assert read.about.scale == seeing.annotator.about.scale
    said = [vote.labels[0] for vote in read._replace(encode=encode).votes(traces.texts)]
    given = [label for trace in traces.labels for (label,) in trace]
    assert np.mean([one == other for one, other in zip(said, given, strict=True)]) > 0.95


@pytest.mark.parametrize(
    ("traces", "says"),
    [
        (made_up(4), "traces of 4 questions"),
        (made_up(12)._replace(labels=[[["alpha"]] * 8] * 24), "fewer than two labels"),
        (LabelledTraces([], [], []), "traces of 0 questions"),
    ],
)
def test_too_little_to_learn_from_is_refused(traces, says):
    with pytest.raises(DataError, match=says):
        distil(traces, LABELS)


def test_a_calibration_finds_the_curve_it_was_made_by():
    rng = np.random.default_rng(0)
    marginals = rng.uniform(0.02, 0.98, size=(5_000, 12))
    truth = Calibration(-0.5, 1.6)
    given = rng.random(marginals.shape) < truth.apply(marginals)
    found = fit_calibration(marginals, given)
    assert abs(found.intercept - truth.intercept) < 0.05 and abs(found.slope - truth.slope) < 0.05
    assert calibration_error(np.full(1000, 0.8), np.arange(1000) % 10 < 8) < 1e-9


def test_scores_are_scikit_learns(half_garbled):
    probs, given = half_garbled.held_out, half_garbled.given
    said = np.array([[label in vote.labels for label in LABELS] for vote in half_garbled.votes])
    assert macro_f1(said, given) == pytest.approx(f1_score(given, said, average="macro"))
    scores = score_annotator(probs, given, LABELS)
    assert [each.f1 for each in scores.labels] == pytest.approx(f1_score(given, said, average=None).tolist())
    assert scores.accuracy == pytest.approx(given[np.arange(len(given)), probs.argmax(axis=1)].mean())


def test_what_goes_on_is_what_it_is_least_sure_of(half_garbled):
    trace_of_segment = np.repeat(np.arange(120), 8)
    curve = escalation_curve(half_garbled.held_out, half_garbled.given, LABELS, trace_of_segment)
    assert [row.share for row in curve] == pytest.approx([0, 0.05, 0.1, 0.2, 0.3, 0.5, 1], abs=0.02)
    assert curve[0].below == 0 and curve[0].traces == 0 and curve[-1].macro_f1 == 1 and curve[-1].traces == 1
    assert curve[-1].below == 10 and curve[-1].share == 1, "the confidence that a config sends everything on by"
    assert curve[0].macro_f1 < curve[4].macro_f1 < 1 and curve[0].accuracy_rest < curve[4].accuracy_rest
    sure = np.round(10 * half_garbled.held_out.max(axis=1), 2)
    assert [row.share for row in curve[:-1]] == pytest.approx([(sure < row.below).mean() for row in curve[:-1]])
    of_traces = escalation_curve(half_garbled.held_out, half_garbled.given, LABELS, trace_of_segment, escalate="traces")
    means = np.minimum(sure, 9.99).reshape(120, 8).mean(axis=1)
    assert [row.traces for row in of_traces] == pytest.approx(
        [(means < row.below).mean() for row in of_traces], abs=0.01
    ), "but for what rounding makes of a mean that is the threshold"
    assert [row.share for row in of_traces] == pytest.approx([row.traces for row in of_traces])


def test_where_the_teacher_found_no_label_it_is_wrong_and_less_sure():
    traces = made_up(40)
    rng = np.random.default_rng(1)
    none = [[segment if rng.random() < 0.75 else [] for segment in trace] for trace in traces.labels]
    made = distil(traces._replace(labels=none), LABELS)
    scores = score_annotator(made.held_out, made.given, LABELS)
    assert made.is_rated.all() and scores.unlabelled == (~made.given.any(axis=1)).sum() > 100
    assert 0.7 < scores.accuracy < 0.8 and scores.calibration_error < 0.05
    silent = [[segment or None for segment in trace] for trace in none]
    made = distil(traces._replace(labels=silent), LABELS)
    rated = made.is_rated
    assert score_annotator(made.held_out[rated], made.given[rated], LABELS).accuracy > 0.95, "nothing was said of these"


def test_equal_confidences_are_one_row():
    probs = np.full((10, 3), [0.9995, 0.1, 0.1])
    curve = escalation_curve(probs, np.eye(3, dtype=bool)[[0] * 10], LABELS, np.arange(10))
    assert [(row.below, row.share) for row in curve] == [(0, 0), (9.99, 0), (10, 1)]


def test_an_encoder_is_a_sentence_transformers_model_by_its_path(word_vectors):
    """Words of one meaning that the annotator never saw in its lessons: vectors know them, words alone don't."""
    known = {"alpha": ["cat", "horse", "cow"], "beta": ["red", "blue", "yellow"], "gamma": ["Paris", "Rome", "Berlin"]}
    new = {"alpha": ["dog", "sheep"], "beta": ["green", "purple"], "gamma": ["Madrid", "Vienna"]}
    rng = np.random.default_rng(0)
    labels = [[[LABELS[rng.integers(3)]] for _ in range(6)] for _ in range(30)]
    texts = [[str(rng.choice(known[segment[0]])) for segment in trace] for trace in labels]
    encode = load_sentence_encoder(str(word_vectors), "--encoder", "leave it out")
    assert encode(["a cat", ""]).shape == (2, 256) and not encode([""]).any()
    made = distil(LabelledTraces(texts, labels, [f"q{n}" for n in range(30)]), LABELS, encode=encode, encoder="vectors")
    asked = [(word, label) for label, words in new.items() for word in words]
    right = [made.annotator.votes([[word]])[0].labels[0] == label for word, label in asked]
    assert sum(right) >= 5, "of six; by chance two"

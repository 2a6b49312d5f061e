"""From named clusters to a label set that every later stage and the offline annotators can use."""

import pytest

from mralign_core.annotation.cue import HABITS, score_cues
from mralign_core.errors import DataError
from mralign_core.induction.naming import cues_of, join_labels, make_label_set, named_by_phrase
from mralign_core.induction.replies import Named
from mralign_core.label_sets import load_label_set, save_label_set

CLUSTERS = [{"recall fact": 9, "retrieve fact": 4}, {"check claim": 8}, {"remember fact": 3}, {"state answer": 30}]
NAMES = [
    Named("fact_recall", "recalls", "knowledge"),
    Named("claim_check", "checks", "control"),
    Named("fact_recall", "remembers", "memory"),
    Named("answer", "answers", "telling"),
]


def test_clusters_of_one_name_are_one_label_with_the_words_of_the_first():
    labels = {label.name: label for label in join_labels(CLUSTERS, NAMES)}
    joined = labels["fact_recall"]
    assert (joined.clusters, joined.definition, joined.macro_strategy) == ((0, 2), "recalls", "knowledge")
    assert list(joined.phrases.items()) == [("recall fact", 9), ("retrieve fact", 4), ("remember fact", 3)]
    assert joined.num_instances == 16 and len(labels) == 3


def test_labels_come_by_macro_strategy_and_by_frequency():
    one_macro = [name._replace(macro_strategy="x") if name.name == "claim_check" else name for name in NAMES]
    names = [*one_macro, Named("doubt", "doubts", "x")]
    labels = join_labels([*CLUSTERS, {"doubt claim": 20}], names)
    assert [label.name for label in labels] == ["answer", "doubt", "claim_check", "fact_recall"]


def test_the_set_can_be_written_and_read_back(tmp_path):
    label_set = make_label_set(join_labels(CLUSTERS, NAMES))
    save_label_set(label_set, tmp_path / "set.yaml")
    assert load_label_set(tmp_path / "set.yaml") == label_set


@pytest.mark.parametrize(
    ("phrase", "name"),
    [("check claim", "check_claim"), ("2nd look", "move_5"), ("事実 を 思い出す", "move_5"), ("a" * 50, "a" * 40)],
)
def test_a_phrase_becomes_a_name_that_files_accept(tmp_path, phrase, name):
    named = named_by_phrase(5, {phrase: 3})
    assert named.name == name
    label_set = make_label_set(join_labels([{phrase: 3}], [named]))
    save_label_set(label_set, tmp_path / "set.yaml")
    assert load_label_set(tmp_path / "set.yaml") == label_set


def test_cues_find_the_phrases_whatever_stands_between_their_words():
    lexicon = {"check": cues_of({"wait let s check": 3, "c (sharp": 1})}
    for text in ("Wait, let's check: it is Rome.", "so wait – let’s  check", "it is C (sharp here"):
        assert score_cues(text, HABITS["a"], lexicon)
    for text in ("await let's check", "wait let us check", "sharp"):
        assert not score_cues(text, HABITS["a"], lexicon)


def test_too_many_labels_or_none_are_refused():
    clusters = [{f"move {chr(97 + n // 26)}{chr(97 + n % 26)}": 1} for n in range(201)]
    names = [named_by_phrase(number, phrases) for number, phrases in enumerate(clusters)]
    with pytest.raises(DataError, match=r"201 labels.*1 to 200.*raise induce\.min_samples"):
        make_label_set(join_labels(clusters, names))
    with pytest.raises(DataError, match="0 labels"):
        make_label_set([])

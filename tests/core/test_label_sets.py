"""Label set files: what is read, what is refused, and that a set written is the set read."""

import re

import numpy as np
import pytest
import regex
import yaml

from mralign_core.annotation.cue import HABITS, LEXICON, score_cues
from mralign_core.errors import ConfigError
from mralign_core.label_sets import PAPER_LABEL_SET, LabelSet, load_label_set, save_label_set
from mralign_core.method.taxonomy import PAPER_TAXONOMY

GOOD = """
labels:
  - {name: recall, definition: brings something in, macro_strategy: knowing, cues: {'\\bi recall\\b': 8}}
  - {name: doubt, definition: questions a claim}
"""


def test_no_file_is_the_papers_set():
    assert load_label_set("") is PAPER_LABEL_SET
    assert PAPER_LABEL_SET.taxonomy is PAPER_TAXONOMY


def test_order_definitions_groups_and_cues_are_read(tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text(GOOD)
    taxonomy, lexicon = load_label_set(path)
    assert taxonomy.labels == ("recall", "doubt") and taxonomy.num_states == 4
    assert taxonomy.macro_of("recall") == "knowing" and taxonomy.macro_of("doubt") == "labels"
    assert lexicon == {"recall": {r"\bi recall\b": 8}}


@pytest.mark.parametrize("label_set", [PAPER_LABEL_SET, LabelSet(PAPER_TAXONOMY, {"framing": {"^ok": 3.5}})])
def test_what_is_written_is_read_back(tmp_path, label_set):
    save_label_set(label_set, tmp_path / "set.yaml")
    loaded = load_label_set(tmp_path / "set.yaml")
    assert loaded.taxonomy == label_set.taxonomy
    assert loaded.taxonomy.definitions == label_set.taxonomy.definitions
    assert loaded.lexicon == (label_set.lexicon or {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("labels: []", "labels"),
        ("- x", "dictionary"),
        ("labels: [{name: Big Name, definition: x}]", "labels.0.name"),
        ("labels: [{name: a}]", "labels.0.definition"),
        ("labels: [{name: unlabelled, definition: x}]", "taken for a step without a label: give it another name"),
        ("labels: [{name: any, definition: x}]", "taken for whatever label: give it another name"),
        ("labels: [{name: a, definition: x, colour: red}]", "labels.0.colour"),
        ("labels: [{name: a, definition: x}, {name: a, definition: y}]", "distinct"),
        ("labels: [{name: a, definition: x, cues: {'(': 3}}]", "regular expression"),
        ("labels: [{name: a, definition: x, cues: {'b': 30}}]", "less than or equal to 10"),
        ("labels: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, says):
    path = tmp_path / "set.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_label_set(path)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"annotate\.label_set.*nowhere\.yaml"):
        load_label_set("nowhere.yaml")


@pytest.mark.parametrize("cue", ["(a+)+$", "(x+x+)+y", "(a|aa)+$"])
def test_a_cue_that_would_search_for_ever_is_named(cue, monkeypatch):
    monkeypatch.setattr("mralign_core.annotation.cue.LONGEST_SEARCH_S", 0.2)
    text = "a" * 4000 + " " + "x" * 4000 + "!"
    with pytest.raises(ConfigError, match="of label 'doubt' takes over"):
        score_cues(text, HABITS["a"], {"doubt": {cue: 5}})


@pytest.mark.parametrize(
    ("cue", "says"),
    [
        ("(", "is no regular expression"),
        ("(?:" * 500 + "a" + ")" * 500, "characters: split it"),
        ("a" * 1001, "split it"),
    ],
)
def test_a_cue_that_is_no_pattern_is_named(tmp_path, cue, says):
    path = tmp_path / "set.yaml"
    path.write_text(yaml.safe_dump({"labels": [{"name": "a", "definition": "d", "cues": {cue: 1}}]}))
    with pytest.raises(ConfigError, match=says):
        load_label_set(path)


def test_cues_find_what_the_standard_library_finds():
    rng = np.random.default_rng(0)
    words = [",", ".", *sorted({word for cues in LEXICON.values() for word in re.findall("[a-z]+", " ".join(cues))})]
    for _ in range(200):
        text = " ".join(rng.choice(words, 25))
        for cues in LEXICON.values():
            for cue in cues:
                ours, theirs = regex.search(cue, text, regex.DOTALL), re.search(cue, text, re.DOTALL)
                assert (ours and ours.span()) == (theirs and theirs.span())

"""The page of a run: it begins with what was found, and ends with what its config changes."""

import doctest

from mralign_core.reporting import run_page as module
from mralign_core.reporting.result_table import ResultTable
from mralign_core.reporting.run_page import Finding, StageStory, changed_fields, run_page, share_done, time_left

STAGE = StageStory("annotate", 90.0, {"annotations": 1200}, {}, 1.5)


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_a_finished_run_begins_with_its_headline_and_ends_with_what_it_changes():
    table = ResultTable(["variant, %", "Mis"], [["KTO", "15.6"]])
    found = Finding("KTO narrows the hit gap.", ["Mis falls."], [table], {"Report": "`report.html`"})
    page = run_page(name="mine", preset="pocket", changes=[["seed", "0", "3"]], stages=[STAGE], found=found)
    order = [
        "# KTO narrows",
        "- Mis falls.",
        "| KTO | 15.6 |",
        "- Report: `report.html`",
        "| annotate |",
        "| seed | 0 | 3 |",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "| annotate | annotations (1,200 rows) | – | 1 min 30 s | 1.50 |" in page
    assert "| all |  |  | 1 min 30 s | 1.50 |" in page


def test_a_run_that_has_just_begun_says_what_it_changes():
    curves = "TensorBoard: `tensorboard --logdir runs`"
    page = run_page(name="mine", preset="pocket", changes=[], stages=[], found=None, curves=curves)
    assert curves in page
    assert page.startswith("# mine: under way") and "Nothing: this run is `pocket` as it ships." in page


def test_changes_are_told_field_by_field_also_inside_lists():
    config = {"seed": 0, "questions": {"train": [{"name": "pocket", "limit": 5}]}, "new": 1}
    preset = {"seed": 0, "questions": {"train": [{"name": "pocket", "limit": None}]}}
    assert changed_fields(config, preset) == [["questions.train.0.limit", "not set", "5"], ["new", "not set", "1"]]


def test_what_is_done_grows_by_time_and_never_ends_before_its_stage():
    seconds = {"prepare": 10.0, "train": 90.0}
    assert share_done([], ["prepare", "train"], seconds, 0.0) == 0.0
    assert share_done(["prepare"], ["train"], seconds, 45.0) == 55.0
    assert share_done(["prepare"], ["train"], seconds, 900.0) < 100.0
    assert share_done(["prepare"], ["train"], {}, 0.0) == 50.0


def test_a_stage_that_takes_longer_than_last_time_leaves_only_the_rest():
    assert time_left(["train", "evaluate"], {"train": 10.0, "evaluate": 60.0}, 500.0) == "at most about 1 min left"

"""What the command line prints of a run's results."""

import json

import pytest
from rich.console import Console

from flows.commands.results import _print_summary, in_type
from mralign_core.config import RunConfig
from mralign_core.reporting.result_table import ResultCell, ResultTable
from mralign_core.reporting.run_findings import Results


@pytest.mark.parametrize(
    ("eval_sets", "says"),
    [([], "questions.eval names no set"), (["longfact"], "no question of questions.eval has a gold answer")],
)
def test_a_run_without_figures_says_why(tmp_path, capsys, eval_sets, says):
    config = RunConfig.model_validate({"questions": {"train": "nq_open", "eval": eval_sets}})
    _print_summary(tmp_path, config)
    assert says in " ".join(capsys.readouterr().out.split())


LEVELS = [
    {"variant": variant, "stratum": "(all)", "scoring": "exact_match", "acc": acc, "mis": mis, "em_thought": thought}
    | {"em_answer": 0.5}
    for variant, acc, mis, thought in [("off", None, None, None), ("on", 0.4, 0.3, 0.6), ("mr_align", 0.52, 0.18, 0.6)]
]
DIFFERENCES = [
    {"variant": "mr_align", "baseline": "on", "stratum": "(all)", "metric": metric, "num_questions": 42}
    | {"difference": difference, "low": difference - 0.105, "high": difference + 0.105}
    for metric, difference in [("acc", 0.12), ("mis", -0.12), ("em_thought", 0.0), ("em_answer", 0.213)]
]


def typed(table, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(in_type(table))
    return console.export_text()


def test_results_fit_80_columns_with_the_intervals_of_acc_and_mis(tmp_path, capsys):
    for name, rows in zip(Results._fields, (LEVELS, DIFFERENCES), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    _print_summary(tmp_path, RunConfig.model_validate({"questions": {"train": "nq_open"}}))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "think off – – – 50.0" in lines
    assert "MR-ALIGN 52.0 18.0 60.0 50.0" in lines
    assert "MR-ALIGN − think on +12.0 [+1.5, +22.5] −12.0 [−22.5, −1.5] 0.0 +21.3" in lines


@pytest.mark.parametrize("width", [80, 50])
def test_a_table_that_is_too_wide_is_wrapped_and_nothing_is_cut(width):
    wide, brief = ResultCell("−12.0 [−22.5, −10.5]", "better"), ResultCell("−12.0 [−22.5, −10.5]", "open", "−12.0")
    table = ResultTable(["difference", "Acc", "Mis", "EM_t"], [["MR-ALIGN − think on", wide, wide, brief]])
    shown = typed(table, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown and [shown.count(text) for text in ("−12.0", "[−22.5,", "−10.5]")] == [3, 2, 2]


def test_the_stratum_is_the_title_and_costs_no_column():
    name = "macro average of nq_open, sciq and simpleqa"
    cells = [ResultCell("+12.0 [+1.5, +22.5]", "better")] * 2 + [ResultCell("+1.0 [+0.5, +1.5]", "better", "+1.0")] * 2
    table = ResultTable(
        ["difference, points", "Acc", "Mis", "EM_t", "EM_a"], [["MR-ALIGN − think on", *cells]], [], name
    )
    title, *lines = typed(table).splitlines()
    assert title.strip() == name
    row = next(line for line in lines if "MR-ALIGN" in line)
    assert " ".join(row.split()) == "MR-ALIGN − think on +12.0 [+1.5, +22.5] +12.0 [+1.5, +22.5] +1.0 +1.0"


def test_a_name_is_no_markup():
    shown = typed(ResultTable(["[b]set[/b]", "n"], [["[red]x[/red]", ResultCell("[1, 2]", "open")]]))
    assert all(text in shown for text in ("[b]set[/b]", "[red]x[/red]", "[1, 2]"))

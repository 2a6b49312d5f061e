"""What the command line prints of a run's results."""

import pytest

from flows.commands.results import _print_summary
from mralign_core.config import RunConfig


@pytest.mark.parametrize(
    ("eval_sets", "says"),
    [([], "questions.eval names no set"), (["longfact"], "no question of questions.eval has a gold answer")],
)
def test_a_run_without_figures_says_why(tmp_path, capsys, eval_sets, says):
    config = RunConfig.model_validate({"questions": {"train": "nq_open", "eval": eval_sets}})
    _print_summary(tmp_path, config)
    assert says in " ".join(capsys.readouterr().out.split())

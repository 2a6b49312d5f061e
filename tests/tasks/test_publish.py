"""What a run's Prefect pages hold: a failure to show is only logged, so that nothing else would tell."""

import inspect
import json

import pytest

from mralign_core.config import RunConfig
from tasks import publish

CONFIG = RunConfig.model_validate({"questions": {"train": "nq_open", "eval": ["longfact"]}})


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """Key → artifact that was shown; the store's artifacts are all the files in ``tmp_path``."""

    class Store:
        def __init__(self, section):
            pass

        def open_directory(self, ref):
            return tmp_path

        def open_file(self, ref, name):
            return tmp_path / name

        def read_json(self, ref, name):
            return json.loads((tmp_path / name).read_text())

    shown = {}
    monkeypatch.setattr(publish, "ArtifactStore", Store)
    monkeypatch.setattr(publish, "_publish", lambda artifact: shown.update({artifact.key: artifact}))
    return shown


def test_results_are_levels_differences_and_where_the_report_is(pages, tmp_path):
    metrics = {"acc": 0.4, "mis": 0.3, "em_thought": 0.6, "em_answer": 0.5}
    same = {"stratum": "(all)", "scoring": "exact_match"}
    levels = [{"variant": variant, **same, **metrics} for variant in ("on", "kto")]
    pair = {"variant": "kto", "baseline": "on", "stratum": "(all)", "difference": 0.1, "low": 0.05, "high": 0.2}
    (tmp_path / "summary.json").write_text(json.dumps(levels))
    (tmp_path / "differences.json").write_text(json.dumps([{**pair, "metric": name} for name in metrics]))
    inspect.unwrap(publish.show_results)(CONFIG, None, None)
    assert set(pages) == {"results", "results-figure"}
    text = pages["results"].markdown
    assert f"`{tmp_path / 'report.html'}`" in text and "| KTO | 40.0 | 30.0 | 60.0 | 50.0 |" in text
    assert "| KTO − think on | **+10.0 [+5.0, +20.0]** |" in text and "Bold: the interval excludes 0." in text


def test_results_of_a_set_with_accuracy_alone_have_its_figure(pages, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(publish.figures, "difference_intervals", lambda _, metrics: drawn.append(metrics))
    monkeypatch.setattr(publish, "_image", lambda *_: None)
    levels = [
        {"variant": variant, "stratum": "gsm8k", "scoring": "number", "em_answer": 0.5} for variant in ("on", "kto")
    ]
    pair = {"variant": "kto", "baseline": "on", "stratum": "gsm8k", "difference": 0.1, "low": 0.05, "high": 0.2}
    (tmp_path / "summary.json").write_text(json.dumps(levels))
    (tmp_path / "differences.json").write_text(json.dumps([{**pair, "metric": "em_answer"}]))
    inspect.unwrap(publish.show_results)(CONFIG, None, None)
    assert drawn == [("em_answer",)]
    assert "| variant, % | accuracy |" in pages["results"].markdown


def test_a_page_without_results_says_why(pages):
    inspect.unwrap(publish.show_results)(CONFIG, None, None)
    assert "no question of questions.eval has a gold answer" in pages["results"].markdown


def test_the_yield_is_the_table_of_the_terminal(pages, tmp_path):
    funnel = [{"step": "drawn", "kept": 1200, "dropped": 0, "reason": ""}]
    funnel += [{"step": "matched", "kept": 300, "dropped": 900, "reason": "no gold answer"}]
    (tmp_path / "funnel.json").write_text(json.dumps(funnel))
    inspect.unwrap(publish.show_yield)(CONFIG, None)
    assert pages["yield"].table[1] == {"step": "matched", "kept": "300", "dropped": "900", "reason": "no gold answer"}
    assert "yield-figure" in pages

"""The sentence claims what its intervals exclude 0 for and nothing else; tables, page and figure show the same."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.ablation.grid import arm_comparisons, arms_of
from mralign_core.ablation.paired import mean_differences
from mralign_core.config import parse_config
from mralign_core.reporting.ablation_figure import forest_plot
from mralign_core.reporting.ablation_findings import (
    Ablation,
    ablation_markdown,
    ablation_tables,
    is_shown,
    oracle_rows,
    sentence,
)
from mralign_core.reporting.style import to_png
from mralign_core.schemas.ablation import ABLATION_RESULTS

ARMS = ["kto", "mr_align", "placebo_within"]
CONFIG = parse_config(
    {
        "model": {"source": "pocket"},
        "questions": {"train": "pocket", "eval": "pocket"},
        "ablate": {"arms": ARMS},
    }
)


REFUSED = {5: "one_hop_accuracy 0.5 is below 0.95"}


def ablation(accs, *, unit="world", confidence=0.95, num_seeds=1, is_pocket=True, config=CONFIG):
    """From Acc of on, kto, mr_align and placebo_within in each unit, Mis being 1 − Acc, and think-off.

    Another model's Acc untrained is that of its arm less .2, .22, .21 in the first units.
    """
    rows: list[tuple[object, ...]] = []
    backbones = [name for name, arm in arms_of(config).items() if arm.backbone == name]
    for number, levels in enumerate(accs):
        world, seed = (number, 0) if unit == "world" else (0, number)
        for repeat in range(num_seeds):
            for arm, acc in zip(["on", *config.ablate.arms], levels, strict=True):
                rows.append((world, seed + repeat, arm, 20, 100, acc, 1 - acc, 1.0, acc, 0.99, 31.26))
            for name in backbones:
                acc = dict(zip(config.ablate.arms, levels[1:], strict=True))[name] - (0.2, 0.22, 0.21)[number]
                rows.append((world, seed + repeat, f"on@{name}", 20, 100, acc, 1 - acc, 1.0, acc, 0.99, 31.26))
            rows.append((world, seed + repeat, "off", 20, 100, np.nan, np.nan, np.nan, 0.9, 1.0, np.nan))
    results = pd.DataFrame(rows, columns=list(ABLATION_RESULTS.columns))
    arms = arms_of(config)
    differences = mean_differences(results, arm_comparisons(arms), unit=unit, confidence=confidence)
    return Ablation(arms, results, differences, unit, confidence, 0.005, is_pocket, REFUSED)


CLEAR = ablation(
    [(0.70, 0.80, 0.85, 0.801), (0.72, 0.81, 0.87, 0.809), (0.68, 0.79, 0.84, 0.792), (0.7, 0.8, 0.86, 0.799)],
    num_seeds=2,
)


def claims(text):
    """What the sentence says is shown, and what not."""
    found = re.search(r"excludes 0, is (.*?); what is not shown is (.*?); (?:a diff[^;]*; )?these \d+ intervals", text)
    assert found, text
    return found.groups()


def test_the_sentence_of_a_clear_case():
    shown, unshown = claims(sentence(CLEAR))
    assert sentence(CLEAR).startswith(
        "Over 4 worlds with 2 alignment seeds each (20 held-out questions and 100 answers an arm and seed), what is "
    )
    assert "MR-ALIGN − KTO (Acc +5.5 [+4.6, +6.4] 4/4, Mis −5.5 [−6.4, −4.6] 4/4)" in shown
    assert "MR-ALIGN − placebo within (Acc" in shown
    assert unshown == "placebo within − KTO (Acc, Mis)"
    assert "these 12 intervals are not corrected for their number, so that about 0.6 would exclude 0 by chance" in (
        sentence(CLEAR)
    )
    assert sentence(CLEAR).endswith("so this is a positive control and says nothing of large models.")
    assert sentence(CLEAR).count(". ") == 0, "one sentence"


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.floats(0.0, 1.0)] * 4), min_size=1, max_size=5), st.sampled_from(["world", "seed"]))
def test_nothing_is_called_shown_whose_interval_holds_0(accs, unit):
    found = ablation(accs, unit=unit, is_pocket=unit == "world")
    text = sentence(found)
    rows = found.differences[found.differences["metric"].isin(["acc", "mis"])]
    if rows["low"].isna().all():
        assert "there is no interval, so that nothing is shown or ruled out" in text
        return
    shown, unshown = claims(text)
    for (arm, baseline), each in rows.groupby(["arm", "baseline"]):
        name = f"{found.title(arm)} − {found.title(baseline)} ("
        for part, wanted in ((shown, True), (unshown, False)):
            listed = re.search(re.escape(name) + r"(.*?)\)(, |$)", part)
            named = {metric for metric in ("Acc", "Mis") if listed and metric in listed[1]}
            assert named == {row["metric"].capitalize() for _, row in each.iterrows() if is_shown(row) == wanted}


def test_one_unit_gives_no_interval_and_no_claim():
    text = sentence(ablation([(0.7, 0.8, 0.9, 0.8)]))
    assert text.startswith("In one world with one alignment seed (20 held-out questions")
    assert "nothing is shown or ruled out" in text


def test_seeds_of_one_model_are_not_passed_off_as_worlds():
    accs = [(0.70, 0.80, 0.85, 0.80), (0.71, 0.80, 0.86, 0.81), (0.70, 0.81, 0.85, 0.80)]
    text = sentence(ablation(accs, unit="seed", is_pocket=False))
    assert text.startswith("In one world with 3 alignment seeds")
    assert "interval over seeds excludes 0" in text
    assert "seeds of one model are not independent worlds" in text
    assert "positive control" not in text


def test_a_difference_worth_having_is_ruled_out_by_a_narrow_interval_around_0_alone():
    def ruled_out(placebos):
        others = zip((0.70, 0.72, 0.68, 0.7), (0.80, 0.81, 0.79, 0.80), (0.85, 0.87, 0.84, 0.86), strict=True)
        text = sentence(ablation([(*one, placebo) for one, placebo in zip(others, placebos, strict=True)]))
        found = re.search(r"a difference of 0\.5 points or more is ruled out for (.*?); these", text)
        return found[1] if found else ""

    assert ruled_out((0.801, 0.809, 0.792, 0.799)) == "placebo within − KTO (Acc, Mis)"
    assert ruled_out((0.804, 0.813, 0.794, 0.803)) == "placebo within − KTO (Acc, Mis)", "shown, and not worth having"
    assert ruled_out((0.81, 0.80, 0.80, 0.79)) == "", "its interval is wide"
    assert ruled_out((0.81, 0.82, 0.80, 0.81)) == "", "its interval is narrow and far from 0"


def with_oracles(accs):
    arms = ["kto", "mr_align", "squared", "value_squared", "squared_placebo", "oracle", "oracle_squared"]
    config = CONFIG.model_copy(update={"ablate": CONFIG.ablate.model_copy(update={"arms": tuple(arms)})})
    return ablation(accs, config=config)


def test_a_gain_is_told_as_a_share_of_that_of_the_oracle_of_the_same_form():
    found = with_oracles(
        [
            (0.70, 0.80, 0.82, 0.83, 0.84, 0.80, 0.83, 0.86),
            (0.70, 0.81, 0.83, 0.84, 0.85, 0.81, 0.85, 0.871),
            (0.70, 0.79, 0.81, 0.82, 0.83, 0.79, 0.82, 0.849),
        ]
    )
    rows = {row[0]: row for row in oracle_rows(found)}
    assert set(rows) == {"MR-ALIGN", "squared", "by value, squared"}, "no placebo, and no oracle of itself"
    assert rows["MR-ALIGN"][2] == "oracle" and rows["MR-ALIGN"][-1] == "60.0 %"
    assert rows["squared"][2] == rows["by value, squared"][2] == "oracle, squared"
    assert [rows[name][-1] for name in ("squared", "by value, squared")] == ["50.0 %", "66.7 %"]
    assert oracle_rows(CLEAR) == [] and "share" in ablation_markdown(found)


def test_no_share_of_a_gain_that_the_oracle_does_not_show():
    found = with_oracles(
        [
            (0.70, 0.80, 0.82, 0.83, 0.84, 0.80, 0.83, 0.86),
            (0.70, 0.81, 0.83, 0.84, 0.85, 0.81, 0.80, 0.82),
            (0.70, 0.79, 0.81, 0.82, 0.83, 0.79, 0.82, 0.74),
        ]
    )
    assert {row[-1] for row in oracle_rows(found)} == {"–"}


def test_what_survives_bonferroni_is_counted():
    rows = CLEAR.differences[CLEAR.differences["metric"].isin(["acc", "mis"])]
    survive = (rows["p_value"] * 12 < 0.05).sum()
    assert 0 < survive < 12
    assert f"{survive} would still do so after Bonferroni's correction" in sentence(CLEAR)


def test_the_page_has_levels_differences_arms_and_refused_worlds():
    page = ablation_markdown(CLEAR)
    assert sentence(CLEAR) in page
    assert "| think on | 70.0 | 30.0 | 100.0 | 70.0 | 99.0 | 31.3 |" in page
    assert "| think off | – | – | – | 90.0 | 100.0 | – |" in page
    assert "| MR-ALIGN − KTO | **+5.5 [+4.6, +6.4] 4/4** |" in page
    assert "| placebo_within | placebo within | mr_align | `reward.placebo: within_trace` |" in page
    assert "World 5 was left out and replaced: one_hop_accuracy 0.5 is below 0.95" in page


def test_an_ablation_on_accuracy_alone_speaks_of_nothing_else():
    gone = ["acc", "mis", "em_thought"]
    results = CLEAR.results.assign(**dict.fromkeys(gone, np.nan))
    differences = mean_differences(results, arm_comparisons(CLEAR.arms), unit="world", confidence=0.95)
    found = CLEAR._replace(results=results, differences=differences, left_out=["nq_open"])
    shown, unshown = claims(sentence(found))
    assert "MR-ALIGN − KTO (accuracy +5.5 [+4.6, +6.4] 4/4)" in shown and unshown == "placebo within − KTO (accuracy)"
    page = ablation_markdown(found)
    assert "| mean, % | accuracy | formed | words |" in page and "Acc" not in page
    assert "Left out of the comparison, for other metrics than these or none: nq_open." in page
    assert [axes.get_title("left") for axes in forest_plot(found).axes] == ["accuracy (higher is better)"]


def test_levels_come_first_then_differences_of_two_metrics_a_table():
    levels, headline, others = (table.to_records() for table in ablation_tables(CLEAR))
    shares = {"Acc": "80.0", "Mis": "20.0", "EM_t": "100.0", "EM_a": "80.0", "formed": "99.0"}
    assert {"mean, %": "KTO", **shares, "words": "31.3"} in levels
    pair = {"paired difference, points": "MR-ALIGN − KTO"}
    assert {**pair, "Acc": "+5.5 [+4.6, +6.4] 4/4", "Mis": "−5.5 [−6.4, −4.6] 4/4"} in headline
    assert {**pair, "EM_t": "0.0", "EM_a": "+5.5 [+4.6, +6.4] 4/4"} in others


@pytest.mark.parametrize("found", [CLEAR, ablation([(0.7, 0.8, 0.9, 0.8)])])
def test_the_figure_fills_the_dots_whose_interval_excludes_0(found):
    figure = forest_plot(found)
    acc, mis = figure.axes
    num_pairs = len(arm_comparisons(found.arms))
    for axes, metric in ((acc, "acc"), (mis, "mis")):
        rows = found.differences[found.differences["metric"] == metric]
        dots = [line for line in axes.lines if line.get_markersize() == 8]
        assert [np.asarray(dot.get_xdata())[0] for dot in dots] == pytest.approx((100 * rows["difference"]).tolist())
        assert [dot.get_markerfacecolor() != "white" for dot in dots] == [is_shown(row) for _, row in rows.iterrows()]
        units = [line for line in axes.lines if line.get_markersize() == 3.5]
        assert [np.size(line.get_xdata()) for line in units] == [found.num_units] * num_pairs
    assert len(to_png(figure)) > 3000

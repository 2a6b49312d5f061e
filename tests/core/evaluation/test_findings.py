import doctest

import numpy as np
import pandas as pd
import pytest
from sample_run import as_scores, random_scores, score

from mralign_core.evaluation.metrics import paired_differences, summarize
from mralign_core.reporting import run_findings as findings
from mralign_core.reporting.figures import difference_intervals
from mralign_core.reporting.run_findings import Difference, headline, result_tables, sentences
from mralign_core.schemas.candidates import POLARITIES


def tables(scores):
    rng = np.random.default_rng(0)
    return summarize(scores), paired_differences(scores, num_resamples=400, confidence=0.95, rng=rng)


def page(summary, differences):
    return "\n\n".join(table.to_markdown() for table in result_tables(summary, differences))


@pytest.fixture(scope="module")
def repaired():
    """KTO changes nothing, MR-ALIGN repairs about a tenth of the answers."""
    return tables(random_scores(np.random.default_rng(0), ("off", "on", "kto", "mr_align"), 60))


def test_docstring_examples_hold():
    assert doctest.testmod(findings).failed == 0


@pytest.mark.parametrize(
    ("metric", "low", "high", "tone"),
    [
        ("mis", -0.05, -0.01, "better"),
        ("mis", 0.01, 0.05, "worse"),
        ("acc", 0.01, 0.05, "better"),
        ("acc", -0.05, -0.01, "worse"),
        ("acc", 0.0, 0.05, "open"),
        ("mis", -0.05, 0.0, "open"),
        ("mis", float("nan"), float("nan"), "open"),
    ],
)
def test_only_an_interval_that_excludes_zero_is_a_change(metric, low, high, tone):
    assert Difference("kto", "on", metric, (low + high) / 2, low, high).tone == tone


def test_headline_claims_what_the_interval_supports(repaired):
    assert headline(*repaired).startswith("MR-ALIGN narrows the hit gap: Mis ")
    assert "a further step down from KTO" in headline(*repaired)


def test_headline_says_when_mr_align_and_kto_cannot_be_told_apart():
    summary, differences = tables(random_scores(np.random.default_rng(0), ("on", "kto"), 60))
    twin = random_scores(np.random.default_rng(0), ("on", "kto", "mr_align"), 60)
    twin.loc[twin["variant"] == "mr_align", ["em_answer"]] = twin.loc[
        twin["variant"] == "kto", ["em_answer"]
    ].to_numpy()
    summary, differences = tables(twin)
    assert headline(summary, differences).endswith("; against KTO the interval includes 0.")
    assert "does not measurably change the hit gap" in headline(summary, differences)
    text = " ".join(line for _, line in sentences(summary, differences, 0.95))
    assert "this run alone does not tell the two methods apart" in text
    assert "Mis does not move measurably (0.0 points, interval 0.0 to 0.0)" in text


def test_headline_admits_that_training_made_it_worse():
    rows = [score("on", f"q{i}", True, True) for i in range(40)]
    rows += [score("kto", f"q{i}", True, i % 3 > 0) for i in range(40)]
    assert headline(*tables(as_scores(rows))).startswith(
        "KTO widens the hit gap: Mis 0.0 % before training, 35.0 % after"
    )


def test_sentences_state_sizes_intervals_and_limits(repaired):
    summary, differences = repaired
    tones, texts = zip(*sentences(summary, differences, 0.95), strict=True)
    assert "Before training, exactly one of thinking and answer" in texts[0]
    assert texts[1].startswith("Without thinking, ")
    moved = next(text for text in texts if text.startswith("MR-ALIGN against think on"))
    assert "Mis falls by" in moved and "Acc rises by" in moved and "(interval −" in moved
    assert tones[texts.index(moved)] == "better"
    assert any("EM_t" in text and "does not move measurably for KTO" in text for text in texts)
    assert "95 % paired bootstrap intervals over 60 held-out questions" in texts[-1]
    assert "too narrow" not in texts[-1]


def test_few_questions_are_called_few():
    summary, differences = tables(random_scores(np.random.default_rng(1), ("on", "kto"), 5))
    texts = [text for _, text in sentences(summary, differences, 0.95)]
    assert "fewer than 30 questions" in texts[-1]


def test_markdown_has_both_tables_and_escapes_bars(repaired):
    text = page(*repaired)
    assert "| think off | – | – | – | " in text
    assert "| MR-ALIGN − KTO | **+" in text
    hostile = page(*tables(random_scores(np.random.default_rng(3), ("on", "a|b\nc"), 4)))
    assert "a\\|b c" in hostile
    assert {line.count("|") - line.count("\\|") for line in hostile.splitlines() if line.startswith("|")} == {6}


def test_nothing_trained_is_said_plainly():
    summary, differences = tables(random_scores(np.random.default_rng(4), ("off", "on"), 4))
    assert (
        headline(summary, differences) == "No trained model was compared with plain thinking, so no change is claimed."
    )
    assert len(sentences(summary, differences, 0.95)) == 2
    assert "difference" not in page(summary, differences)
    assert len(result_tables(summary, pd.DataFrame(columns=differences.columns))) == 1


def test_undefined_differences_are_a_dash_and_claim_nothing():
    rows = [score(v, f"q{i}", None if v == "kto" else True, True) for v in ("on", "kto") for i in range(4)]
    summary, differences = tables(as_scores(rows))
    # As they come back from storage: missing numbers are None in object columns.
    differences = differences.astype(object).where(differences.notna(), None)
    assert "KTO − think on | – | – | – |" in page(summary, differences)
    assert "no change is claimed" in headline(summary, differences)
    assert not any("KTO against" in text for _, text in sentences(summary, differences, 0.95))


def traces_of(*groups):
    rows = [(stratum, polarity) for stratum, polarity, number in groups for _ in range(number)]
    return pd.DataFrame(rows, columns=["stratum", "polarity"])


def test_composition_names_the_strata_that_lack_a_polarity():
    one_sided = traces_of(("One", "negative", 5), ("two", "positive", 3), ("two", "negative", 1))
    text = findings.composition(one_sided)
    assert text == (
        "Aligned on One: 0 positive, 5 negative; two: 3 positive, 1 negative traces. As no One trace is positive, "
        "weights may tell kinds of question apart in place of right from wrong."
    )
    of_draws = findings.composition(one_sided, are_estimated_from=False)
    assert of_draws == text.partition(" As ")[0]
    both = findings.composition(
        traces_of(("a", "negative", 5), ("a", "positive", 3), *((("b", p, 1)) for p in POLARITIES))
    )
    assert both == "Aligned on a: 3 positive, 5 negative; b: 1 positive, 1 negative traces."
    many = findings.composition(traces_of(*((f"s{n}", POLARITIES[n % 2], 10 - n) for n in range(9))))
    assert "; 3 others: 6 positive, 3 negative traces." in many and "s7" not in many  # 4 and 2 positive, 3 negative


def test_the_composition_stands_beside_mr_align_against_kto_only():
    rng = np.random.default_rng(0)
    scores = random_scores(rng, ["on", "kto", "mr_align"], 30)
    summary, differences = summarize(scores), paired_differences(scores, num_resamples=50, confidence=0.95, rng=rng)
    said = [text for _, text in sentences(summary, differences, 0.95, "COMPOSED.")]
    assert [text.startswith("MR-ALIGN against KTO") for text in said if "COMPOSED." in text] == [True]


def with_sets(rows, **scorings):
    """The same answers as those of several sets, how each is scored by name."""
    names = list(scorings)
    return [
        row
        | {"question_id": f"{name}-{row['question_id']}", "source": name, "stratum": name, "scoring": scorings[name]}
        | ({} if scorings[name] == "exact_match" else {"em_thought": None})
        for name in names
        for row in rows
    ]


def repaired_sets(**scorings):
    rows = random_scores(np.random.default_rng(0), ("off", "on", "kto", "mr_align"), 60).to_dict("records")
    return tables(as_scores(with_sets(rows, **scorings)))


def test_a_headline_over_sets_says_which():
    found = repaired_sets(nq="exact_match", sciq="exact_match", gsm8k="number")
    assert headline(*found).startswith("On the macro average of nq and sciq, MR-ALIGN narrows the hit gap: Mis ")
    assert headline(*repaired_sets(nq="exact_match", gsm8k="number")).startswith("On nq, MR-ALIGN narrows")
    accuracy = repaired_sets(gsm8k="number")
    assert headline(*accuracy).startswith("MR-ALIGN raises the accuracy: ")
    assert "a further step up from KTO" in headline(*accuracy)
    summary, differences = accuracy
    said = " ".join(text for _, text in sentences(summary, differences, 0.95))
    assert "Accuracy rises by" in said and "(accuracy)" in said and "Mis" not in said and "EM_a" not in said


def test_the_figure_has_panels_for_the_metrics_of_the_headline():
    for scoring, panels in (("exact_match", ["Acc", "Mis"]), ("number", ["accuracy"])):
        summary, differences = repaired_sets(one=scoring)
        figure = difference_intervals(differences, findings.panel_metrics(summary))
        assert [axes.get_title("left").partition(" (")[0] for axes in figure.axes] == panels


def test_tables_of_sets_have_the_metrics_of_each():
    text = page(*repaired_sets(nq="exact_match", sciq="exact_match", gsm8k="number"))
    heads = [line for line in text.splitlines() if "variant, %" in line]
    titles = [line.strip("*") for line in text.splitlines() if line.startswith("*")]
    assert titles[::2] == titles[1::2] == ["macro average of nq and sciq", "nq", "sciq", "gsm8k"]
    assert "Mis" in heads[0] and "Mis" not in heads[-1] and "accuracy" in heads[-1]

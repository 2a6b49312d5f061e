"""The paper's Tables 3 and 4 from the arms of an ablation."""

from test_ablation_findings import CONFIG, ablation

from mralign_core.reporting.paper_tables import NO_ARM, paper_section, paper_tables
from mralign_core.reporting.result_table import ResultCell


def of_arms(*arms, accs):
    config = CONFIG.model_copy(update={"ablate": CONFIG.ablate.model_copy(update={"arms": arms})})
    return ablation(accs, config=config)


def test_an_arm_stands_in_the_table_that_the_paper_has_it_in():
    found = of_arms(
        "mr_align",
        "frequency",
        "undesirable_2.0",
        accs=[(0.70, 0.80, 0.78, 0.79), (0.70, 0.82, 0.79, 0.81), (0.70, 0.84, 0.83, 0.845)],
    )
    third, fourth = paper_tables(found)
    assert third.title.startswith("Table 3") and fourth.title.startswith("Table 4")
    # Acc of MR-ALIGN is (80 + 82 + 84) / 3, of frequency (78 + 79 + 83) / 3; Mis is 100 − Acc.
    assert [row[:3] for row in third.rows] == [
        ["EM, two labels (the run's own)", "82.0", "18.0"],
        ["frequency, two labels", "80.0", "20.0"],
    ]
    assert third.rows[0][3:] == ["–", "–"]
    # −2, −3, −1: mean −2, sd 1, t(2) = 4.303, so ± 2.48.
    assert third.rows[1][3] == ResultCell("−2.0 [−4.5, +0.5] 3/3", "open")
    assert [row[0] for row in fourth.rows] == ["the run's own (1.5 unless set)", "2.0"]
    assert paper_section(found)[-1] == NO_ARM


def test_there_is_no_table_without_an_arm_of_it():
    assert paper_tables(of_arms("kto", "mr_align", accs=[(0.7, 0.8, 0.8)])) == []
    assert paper_section(of_arms("kto", "frequency", accs=[(0.7, 0.8, 0.8)])) == []

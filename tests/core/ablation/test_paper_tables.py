"""The paper's Tables 3, 4, 5 and 12 from the arms of an ablation."""

from test_ablation_findings import CONFIG, ablation

from mralign_core.config import parse_config
from mralign_core.reporting.paper_tables import paper_section, paper_tables
from mralign_core.reporting.result_table import ResultCell


def of_arms(*arms, accs, config=CONFIG):
    config = config.model_copy(update={"ablate": config.ablate.model_copy(update={"arms": arms})})
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


def test_there_is_no_table_without_an_arm_of_it():
    assert paper_tables(of_arms("kto", "mr_align", accs=[(0.7, 0.8, 0.8)])) == []
    assert paper_section(of_arms("kto", "frequency", accs=[(0.7, 0.8, 0.8)])) == []


def test_sources_stand_beside_all_of_them():
    sets = [{"name": "pocket", "subset": stratum} for stratum in ("one_hop", "two_hop")]
    config = parse_config({**CONFIG.model_dump(mode="json"), "questions": {"train": sets, "eval": "pocket"}})
    accs = [(0.70, 0.80, 0.78), (0.70, 0.82, 0.79), (0.70, 0.84, 0.83)]
    (table,) = paper_tables(of_arms("mr_align", "only_pocket-two_hop", accs=accs, config=config))
    assert table.title == "Table 3: the data source"
    assert [row[:3] for row in table.rows] == [
        ["pocket-two_hop only", "80.0", "20.0"],
        ["all (the run's own)", "82.0", "18.0"],
    ]
    assert table.rows[0][3] == ResultCell("−2.0 [−4.5, +0.5] 3/3", "open")


def test_a_backbone_stands_beside_itself_untrained_and_is_compared_with_nothing_else():
    found = of_arms("mr_align", "backbone_llama", accs=[(0.70, 0.80, 0.60), (0.71, 0.82, 0.63), (0.72, 0.81, 0.61)])
    (table,) = paper_tables(found)
    assert table.title == "Tables 5 and 12: backbones"
    assert [row[:2] for row in table.rows] == [
        ["think on, the run's own", "71.0"],
        ["MR-ALIGN, the run's own", "81.0"],
        ["think on of Llama backbone", "40.3"],
        ["Llama backbone", "61.3"],
    ]
    # 20, 22, 21: mean 21, sd 1, t(2) = 4.303, so ± 2.48.
    assert table.rows[3][3] == ResultCell("+21.0 [+18.5, +23.5] 3/3", "better")
    assert set(found.differences[found.differences["arm"] == "backbone_llama"]["baseline"]) == {"on@backbone_llama"}
    assert "think on of Llama backbone" in paper_section(found)[-1]

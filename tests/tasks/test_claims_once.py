"""LongFact's answers through tasks to a table: claims and evidence are artifacts, and nothing is asked twice."""

import json
import shutil

import pytest
from chat_server import ChatServer

from mralign_core.config import RunConfig
from mralign_core.evaluation.held_out import notes_on_answers
from mralign_core.judging.quoting import CLAIMS_A_SENTENCE
from mralign_core.reporting.figures import difference_intervals
from mralign_core.reporting.judged_findings import judged_notes, judged_tables, read_judged
from mralign_core.reporting.result_table import ResultCell
from mralign_core.reporting.run_findings import panel_metrics, read_results, result_tables
from mralign_core.schemas.claims import CHECKED_CLAIMS, CLAIM_EVIDENCE
from mralign_core.storage import ArtifactStore
from tasks.engine.graph import artifact_of
from tasks.engine.plan import look_up
from tasks.judge import CLAIMS_FILE, EVIDENCE_FILE, quote_judgements
from tests.judging import PRICE, check_claims, claims_rows, score_rows
from tests.stages import judge_all
from tests.tasks.test_judged_once import publish, results_of

FACTS = [f"The capital of Land{n} is Town{n}." for n in range(12)]
QUESTIONS = claims_rows(["What are the capitals?", "And others?"])
ANSWERS = {
    "off": [["I can't say."], [None]],
    "on": [[" ".join([*FACTS[:2], "The capital of Land2 is Rome."])], [FACTS[4]]],
    "kto": [[" ".join(FACTS[:4])], [" ".join(FACTS[4:6])]],
}


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


def config_of(server, folder, **judge):
    return RunConfig.model_validate(
        {
            "storage": {"root": str(folder / "store")},
            "questions": {"train": "nq_open", "eval": [{"name": "longfact", "path": "prompts"}]},
            "train": {"variants": ["kto"]},
            "judge": {"endpoints": [{"model": "openai/first", "api_base": server.url, **PRICE}], **judge},
        }
    )


def test_claims_become_a_table_with_their_evidence_and_are_asked_once(server, tmp_path):
    server.script = check_claims
    corpus = tmp_path / "facts.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(FACTS)))
    config = config_of(server, tmp_path, evidence={"corpus": str(corpus), "top_k": 2}, shard_size=1)
    asked_of, scores = publish(config, QUESTIONS, ANSWERS)
    assert not notes_on_answers(config, {}, score_rows(QUESTIONS, ANSWERS["on"]))
    (quote,), _ = quote_judgements(config, asked_of, list(scores.values()))
    # 1 sentence of think-off, 3 + 1 of think-on, 4 + 2 of KTO; the first of these two begins alike, and is asked once.
    assert quote.requests == 11 * (1 + CLAIMS_A_SENTENCE) and not server.requests
    judgements = judge_all(config, asked_of, scores)
    assert len(server.requests) == 10 + len({*FACTS[:6], "The capital of Land2 is Rome."})

    store = ArtifactStore(config.storage)
    claims = store.read_table(judgements["kto"], CLAIMS_FILE)
    CHECKED_CLAIMS.require(claims)
    assert claims["claim"].tolist() == FACTS[:6] and set(claims["verdict"]) == {"supported"}
    evidence = store.read_table(judgements["kto"], EVIDENCE_FILE)
    CLAIM_EVIDENCE.require(evidence)
    best = evidence[evidence["rank"] == 1].set_index("claim_id")
    assert best.loc[claims["claim_id"], "document_id"].tolist() == [f"d{n}" for n in range(6)]

    folder = store.open_directory(results_of(config, asked_of, scores, judgements))
    results, judged = read_results(folder), read_judged(folder)
    assert results is not None and judged is not None
    # Claims: 3, 1, 4, 2, so K = 2.5. Think-on: 2 of 3 supported gives 2·(2/3)(.8)/(2/3 + .8) = .7273, and 1 of 1 gives
    # 2·.4/1.4 = .5714; KTO: 1, and 2·.8/1.8 = .8889.
    levels, differences = result_tables(*results)
    assert levels.rows == [["think off", "0.0", "0.0"], ["think on", "64.9", "83.3"], ["KTO", "94.4", "100.0"]]
    moved = differences.rows[0][1]
    assert isinstance(moved, ResultCell) and moved.text.startswith("+29.5")
    assert difference_intervals(results.differences, panel_metrics(results.summary))
    (table,) = judged_tables(judged)
    assert table.rows[0] == ["think off", "0.0", "100.0", "–", "–", "–"]
    assert "counts as an abstention: think off 50.0 %." in " ".join(judged_notes(judged))

    sent, place = len(server.requests), tmp_path / "moved.jsonl"
    shutil.move(corpus, place)
    elsewhere = config_of(server, tmp_path, evidence={"corpus": str(place), "top_k": 2}, shard_size=1)
    assert judge_all(elsewhere, asked_of, scores) == judgements and len(server.requests) == sent
    with place.open("a") as file:
        file.write(json.dumps({"text": "Of nothing that is asked."}) + "\n")
    inputs = {"evaluation-questions": asked_of, "scores:on": scores["on"]}
    planned = list(look_up(artifact_of("judgements"), elsewhere, {"variant": "on"}, store, inputs))
    assert "cached" not in {entry.status for entry in planned}
    judge_all(elsewhere, asked_of, scores)
    assert len(server.requests) == sent, "the same passages are found, and their verdicts are kept"


def test_without_evidence_nothing_is_asked_and_the_note_says_what_to_set(server, tmp_path):
    config = config_of(server, tmp_path)
    asked_of, scores = publish(config, QUESTIONS, ANSWERS)
    judgements = judge_all(config, asked_of, scores)
    assert not server.requests and read_judged_rates(config, asked_of, scores, judgements).empty
    (note,) = notes_on_answers(config, {}, score_rows(QUESTIONS, ANSWERS["on"]))
    assert "judge.evidence" in note and "2 of its questions were answered" in note


def test_the_pocket_worlds_facts_are_evidence_for_its_own_model_only(server, tmp_path):
    with pytest.raises(ValueError, match=r"judge\.evidence\.corpus 'pocket' has the facts of the pocket world"):
        config_of(server, tmp_path, evidence={"corpus": "pocket"})


def read_judged_rates(config, asked_of, scores, judgements):
    folder = ArtifactStore(config.storage).open_directory(results_of(config, asked_of, scores, judgements))
    judged = read_judged(folder)
    assert judged is not None
    return judged.claim_rates

"""Versions as records, as people name them, and beside one another."""

import doctest
import importlib

import pandas as pd
import pytest

from mralign_core.errors import ArtifactError
from mralign_core.reporting.result_table import ResultCell
from mralign_core.reporting.version_tables import (
    difference_notes,
    difference_tables,
    history_table,
    score_table,
    version_list,
)
from mralign_core.schemas.annotations import ANNOTATIONS
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.schemas.scores import SCORES
from mralign_core.schemas.segment_weights import SEGMENT_WEIGHTS
from mralign_core.storage.tables import write_table
from mralign_core.versions.aliases import Aliases
from mralign_core.versions.differences import Overlap, SegmentChange, version_differences
from mralign_core.versions.record import (
    QuestionDigest,
    VersionRecord,
    cost_usd,
    digests_of_questions,
    digests_trained_on,
    left_out,
    made_from,
    question_digests,
    scores_in,
)
from mralign_core.versions.version import read_versions, resolve_version, trained_on
from tests.version_store import CONFIG, publish, publish_version


def row(stratum="(all)", variant="mr_align", **shares):
    return {"variant": variant, "stratum": stratum, "scoring": "exact_match", "num_questions": 4, **shares}


def difference(metric, value, low, high, stratum="(all)"):
    ends = {"difference": value, "low": low, "high": high}
    return {"variant": "mr_align", "baseline": "on", "stratum": stratum, "metric": metric, **ends}


MEASURED = {
    "scores": [
        row(variant="on", acc=0.5, mis=0.25, em_thought=1.0, em_answer=0.5),
        row(acc=0.75, mis=None, em_thought=1.0, em_answer=0.75),
    ],
    "differences": [difference("acc", 0.25, 0.1, 0.4), difference("mis", None, None, None)],
}


@pytest.mark.parametrize("name", ["aliases", "differences", "record"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"mralign_core.versions.{name}"))
    assert results.attempted and not results.failed


class TestNames:
    def test_a_version_is_found_by_its_name_its_key_and_the_beginning_of_either(self, store, make):
        first, second = make(store, "a"), make(store, "b", variant="kto")
        assert read_versions(store) == [second, first]
        for text in ("mr_align-aaaaaaaa", "mr_align", first.id, "aaa", first.ref.key):
            assert resolve_version(store, text) == first
        assert (second.name, second.id) == ("kto-bbbbbbbb", f"kto-{'b' * 64}")

    def test_an_alias_is_a_name_and_goes_before_the_beginning_of_another(self, store, make):
        first, second = make(store, "a"), make(store, "b", variant="kto")
        Aliases(store).move("kto", first.id, expected=None, by="ada")
        assert resolve_version(store, "kto") == first
        assert resolve_version(store, "kto-b") == second

    @pytest.mark.parametrize(
        ("text", "says"), [("mr_align", "2 versions fit"), ("x", "no alias or version fits"), ("", "no")]
    )
    def test_what_is_not_clear_is_refused_with_what_there_is(self, folder_store, make, text, says):
        make(folder_store, "a")
        make(folder_store, "b")
        with pytest.raises(ArtifactError, match=f"{says}.*\n  mr_align-bbbbbbbb\n  mr_align-aaaaaaaa"):
            resolve_version(folder_store, text)

    def test_an_alias_whose_version_is_gone_says_what_to_do(self, folder_store, make):
        version = make(folder_store, "a")
        Aliases(folder_store).move("champion", version.id, expected=None, by="ada")
        folder_store.remove("version", version.ref.key)
        with pytest.raises(
            ArtifactError, match=r"'champion' names mr_align-aaaaaaaa, which is damaged or gone.*rollback"
        ):
            resolve_version(folder_store, "champion")

    def test_a_version_that_is_damaged_is_not_listed(self, folder_store, make, caplog):
        good, bad = make(folder_store, "a"), make(folder_store, "b")
        folder_store.files.write(f"{bad.ref.path}/data/version.json", b"{}")
        assert read_versions(folder_store) == [good]
        assert "not using" in caplog.text


class TestRecord:
    def test_questions_count_once_however_they_are_written(self):
        assert len(question_digests(["Who wrote Emma?", "who  wrote emma", "Who wrote Persuasion?"])) == 2
        assert QuestionDigest.of(["b", "a"]) == QuestionDigest.of(["a", "b"])

    def test_what_was_trained_on_is_known_among_held_out_questions_whatever_their_options(self):
        asked = questions_table(
            [("q0", "Is it A?\nA. yes\nB. no", ["yes"], ["yes", "no"]), ("q1", "Other?", ["x"], [])]
        )
        traces = pd.DataFrame({"question_id": ["q0"], "question": ["Is it A?\nA. yes\nB. no"]})
        held_out = questions_table([("e0", "is it A", ["no"], [])])
        digests = digests_trained_on(traces, asked)
        assert set(digests_of_questions(held_out)) & set(digests)
        assert not set(digests) & set(question_digests(["Other?"])), "a question without a trace was not trained on"

    def test_what_is_left_out_is_summed_over_the_lineage_each_artifact_once(self, folder_store, tmp_path):
        folder = tmp_path / "labels"
        folder.mkdir()
        (folder / "x").write_text("x")
        labels = folder_store.publish("annotations", "k", folder, parents=[], fingerprint={}, counts={"left_out": 3})
        adapter = publish(folder_store, tmp_path, "adapter", "k", {"y": "y"}, labels)
        lineages = {ref.stage: folder_store.lineage(ref) for ref in (adapter, labels)}
        assert left_out(lineages.values()) == {"annotations": 3}
        assert made_from(lineages["adapter"], {"annotations": lineages["annotations"]}) == {
            "adapter": f"adapter/k/{adapter.sha256[:16]}",
            "annotations": f"annotations/k/{labels.sha256[:16]}",
        }

    def test_costs_are_of_each_reply_once(self):
        replies = pd.DataFrame(
            {
                "trace_id": ["t0", "t0", "t1"],
                "role": "annotator_a",
                "model": "m",
                "reply": "",
                "prompt_tokens": 1,
                "completion_tokens": 1,
                "cost_usd": [0.5, 0.25, 1.0],
            }
        )
        verdicts = pd.DataFrame(
            {
                "judge": ["j", "j", "k", "j"],
                "request_digest": ["r", "r", "r", ""],
                "answered": [True, True, True, False],
                "cost_usd": [0.125, 0.125, 0.25, 9.0],
            }
        )
        assert cost_usd([replies]) == 1.75
        assert cost_usd([replies, replies[:1].assign(cost_usd=7.0)], verdicts) == 1.75 + 0.375

    def test_a_secret_of_the_environment_is_in_no_record(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
        nothing = QuestionDigest.of([])
        record = VersionRecord(
            variant="kto",
            base_model="m",
            config={"judge": {"headers": ["Bearer sk-0123456789abcdef"]}},
            made_from={},
            scores=[],
            differences=[],
            trained_on=nothing,
            held_out=nothing,
            left_out={},
            cost_usd=0.0,
        )
        assert "sk-0123456789abcdef" not in record.model_dump_json()

    def test_scores_are_of_the_variant_and_of_the_model_before(self, tmp_path):
        summary = pd.DataFrame([row(variant=name, acc=0.5) for name in ("off", "on", "kto", "mr_align")])
        moved = pd.DataFrame([difference("acc", 0.1, 0.0, 0.2), {**difference("acc", 0.1, 0.0, 0.2), "variant": "kto"}])
        assert scores_in(tmp_path, "kto") == {"scores": [], "differences": []}
        summary.to_json(tmp_path / "summary.json", orient="records")
        moved.to_json(tmp_path / "differences.json", orient="records")
        found = scores_in(tmp_path, "kto")
        assert [one["variant"] for one in found["scores"]] == ["off", "on", "kto"]
        assert [one["variant"] for one in found["differences"]] == ["kto"]


def questions_table(rows):
    """Rows of questions: id, question, gold answers, options."""
    found = [
        {"question_id": one, "question": text, "answers": answers, "source": "s", "split": "eval", "stratum": ""}
        | {"scoring": "option" if options else "exact_match", "options": options, "incorrect_answers": []}
        for one, text, answers, options in rows
    ]
    return QUESTIONS.frame(found)


def trace(trace_id, question_id, completion):
    return {
        "trace_id": trace_id,
        "question_id": question_id,
        "question": f"{question_id}?",
        "answers": ["x"],
        "stratum": "",
        "polarity": "positive",
        "draw": 0,
        "prompt": "",
        "completion": completion,
        "prompt_ids": [1],
        "completion_ids": [1, 2, 3, 4],
        "end_token_id": None,
        "answer": "x",
        "segments": [{"start": 0, "end": 1, "token_start": 0, "token_end": 1}],
        "reasoning_tokens": 1,
    }


def segment(trace_id, labels):
    both = {f"{name}{side}": value for side in ("", "_a", "_b") for name, value in labelled(labels).items()}
    return {"trace_id": trace_id, "segment": 0, "step": 0, "rule": "agree", **both}


def labelled(labels):
    return {"labels": labels, "confidences": [9.0] * len(labels)}


def weight(trace_id, value):
    rest = {"ratio": 1.0, "clipped": False, "support": 1.0, "weight_low": None, "weight_high": None}
    return {"trace_id": trace_id, "segment": 0, "weight": value, **rest}


def answer(question_id, is_right, text="x", stratum=""):
    return {
        "variant": "mr_align",
        "question_id": question_id,
        "source": "s",
        "scoring": "exact_match",
        "stratum": stratum,
        "draw": 0,
        "completion": text,
        "thinking": "t",
        "answer": text,
        "outcome": "ok",
        "em_thought": True,
        "em_answer": is_right,
        "contains_answer": is_right,
        "num_prompt_tokens": 1,
        "num_tokens": 1,
    }


def publish_measured(store, tmp_path, letter, *, traces, labels, weights, questions, answers, beta, **record):
    """A version with tables of its own: two lists of rows a table."""
    tables = {
        "candidates": ("candidates.parquet", CANDIDATES, [trace(*one) for one in traces]),
        "annotations": ("annotations.parquet", ANNOTATIONS, [segment(*one) for one in labels]),
        "weights": ("weights.parquet", SEGMENT_WEIGHTS, [weight(*one) for one in weights]),
        "evaluation-questions": ("questions.parquet", QUESTIONS, questions),
        "scores": ("scores.parquet", SCORES, [answer(*one) for one in answers]),
    }
    parents = [
        publish(
            store,
            tmp_path,
            kind,
            letter * 64,
            lambda folder, name=name, table=table, rows=rows: write_table(
                folder, name, table.require(table.frame(rows)), table
            ),
        )
        for kind, (name, table, rows) in tables.items()
    ]
    kinds = {ref.stage: f"{ref.stage}/{ref.key}/{ref.sha256[:16]}" for ref in parents}
    config = {**CONFIG, "train": {"beta": beta}}
    return publish_version(store, tmp_path, letter, parents=parents, config=config, made_from=kinds, **record)


def asked(*rows):
    return questions_table([(one, f"{one}?", [gold], []) for one, gold in rows]).to_dict("records")


@pytest.fixture
def champion(folder_store, tmp_path):
    """Trained on three traces, and asked four questions."""
    return publish_measured(
        folder_store,
        tmp_path,
        "a",
        traces=[("t0", "q0", "same"), ("t1", "q1", "this"), ("t2", "q2", "gone")],
        labels=[("t0", ["framing"]), ("t1", ["framing"]), ("t2", ["framing"])],
        weights=[("t0", 1.0), ("t1", 1.0), ("t2", 1.0)],
        questions=asked(("e0", "x"), ("e1", "x"), ("e2", "x"), ("e3", "y")),
        answers=[("e0", True), ("e1", True), ("e2", False, "w"), ("e3", True)],
        beta=0.1,
        trained=["d0", "d1"],
        scores=[row(stratum="judged", truthful=0.5) | {"scoring": "truthful"}],
    )


@pytest.fixture
def challenger(folder_store, tmp_path):
    """One trace of it is the champion's, and one has another text; of one question the gold answer is another."""
    return publish_measured(
        folder_store,
        tmp_path,
        "b",
        traces=[("t0", "q0", "same"), ("t1", "q1", "that"), ("t3", "q3", "new")],
        labels=[("t0", ["backtrack"]), ("t1", ["backtrack"]), ("t3", ["framing"])],
        weights=[("t0", 1.5), ("t1", 3.0), ("t3", 1.0)],
        questions=asked(("e0", "x"), ("e1", "x"), ("e2", "x"), ("e3", "z")),
        answers=[("e0", True), ("e1", False, "v"), ("e2", True), ("e3", False)],
        beta=0.2,
        trained=["d1", "d2", "d3"],
        scores=[row(stratum="judged", truthful=0.75) | {"scoring": "truthful"}],
    )


class TestDifferences:
    def test_say_what_changed_in_config_data_labels_and_weights(self, folder_store, champion, challenger):
        found = version_differences(folder_store, champion, challenger)
        assert found.config == [("train.beta", 0.1, 0.2)]
        assert found.questions == Overlap(both=1, added=2, gone=1)
        assert found.traces == Overlap(both=1, added=2, gone=2)
        assert found.segments == SegmentChange(num_segments=1, num_relabelled=1, mean=0.5, most=0.5)
        assert set(found.artifacts) == {"candidates", "annotations", "weights", "evaluation-questions", "scores"}
        assert not found.missing

    def test_compare_answers_to_the_questions_that_are_the_same(self, folder_store, champion, challenger):
        found = version_differences(folder_store, champion, challenger)
        acc = found.scores.set_index("metric").loc["acc"]
        assert (acc["before"], acc["after"], acc["difference"], acc["num_questions"]) == (2 / 3, 2 / 3, 0.0, 3)
        flips = found.flips.set_index("question_id")
        assert flips["flip"].to_dict() == {"e1": "right to wrong", "e2": "wrong to right"}
        assert (flips.at["e1", "answer_before"], flips.at["e1", "answer_after"]) == ("x", "v")

    def test_compare_questions_whatever_their_names_and_strata_are(self, folder_store, tmp_path, champion):
        renamed = questions_table([("set:e0", "e0?", ["x"], []), ("set:e1", "e1?", ["x"], [])]).to_dict("records")
        other = publish_measured(
            folder_store,
            tmp_path,
            "c",
            traces=[("t0", "q0", "same")],
            labels=[("t0", ["framing"])],
            weights=[("t0", 1.0)],
            questions=renamed,
            answers=[("set:e0", False, "v", "hard"), ("set:e1", True, "x", "hard")],
            beta=0.1,
        )
        found = version_differences(folder_store, champion, other)
        assert found.flips["question_id"].tolist() == ["set:e0"]
        assert found.scores.set_index(["stratum", "metric"]).loc[("(all)", "acc"), "after"] == 0.5
        assert version_differences(folder_store, other, champion).flips["question_id"].tolist() == ["e0"]

    def test_count_a_question_once_that_a_set_asks_twice(self, folder_store, tmp_path, champion):
        twice = questions_table([("e0", "e0?", ["x"], []), ("e9", "e0?", ["x"], [])]).to_dict("records")
        rows = {"traces": [("t0", "q0", "same")], "labels": [("t0", ["framing"])], "weights": [("t0", 1.0)]}
        answers = [("e0", False, "v"), ("e9", False, "v")]
        other = publish_measured(folder_store, tmp_path, "c", **rows, questions=twice, answers=answers, beta=0.1)
        for one, two in ((champion, other), (other, champion)):
            found = version_differences(folder_store, one, two)
            assert len(found.flips) == found.scores["num_questions"].max() == 1

    def test_compare_what_judges_say_by_the_records(self, folder_store, champion, challenger):
        found = version_differences(folder_store, champion, challenger)
        truthful = found.scores.set_index(["stratum", "metric"]).loc[("judged", "truthful")]
        assert (truthful["before"], truthful["after"]) == (0.5, 0.75)
        assert pd.isna(truthful["difference"])

    def test_of_a_version_and_itself_are_none(self, folder_store, champion):
        found = version_differences(folder_store, champion, champion)
        assert not found.config and not found.artifacts and found.flips.empty
        assert (found.traces, found.segments) == (Overlap(3, 0, 0), SegmentChange(3, 0, 0.0, 0.0))
        assert found.scores["difference"].dropna().eq(0).all()
        assert "no answer flipped" in difference_notes(found)

    def test_go_on_without_what_is_gone(self, folder_store, champion, challenger):
        folder_store.remove("annotations", "a" * 64)
        found = version_differences(folder_store, champion, challenger)
        assert found.segments is None
        assert [note.partition(":")[0] for note in found.missing] == ["traces, labels and weights"]
        assert len(found.flips) == 2

    def test_have_tables(self, folder_store, champion, challenger):
        found = version_differences(folder_store, champion, challenger)
        tables = {table.columns[0]: table for table in difference_tables(found, "before", "after")}
        assert tables["config"].rows == [["train.beta", "0.1", "0.2"]]
        assert tables["data"].rows == [["questions trained on", "1", "2", "1"], ["traces trained on", "1", "2", "2"]]
        assert tables["answers that flipped"].rows[0] == ["right to wrong", "e1?", "x", "v"]
        assert list(tables["questions"].rows[0][:4]) == ["(all)", "Acc", "66.7", "66.7"]
        assert "answers that flipped: 1 right to wrong, 1 wrong to right" in difference_notes(found)


class TestTables:
    def test_the_list_says_what_names_a_version_and_how_sure_its_score_is(self, folder_store, make):
        version = make(folder_store, "a", cost_usd=1.5, **MEASURED)
        (shown,) = version_list([version], {"champion": version.id, "other": "kto-x"}).rows
        cell = ResultCell("+25.0 [+10.0, +40.0]", "better")
        assert shown == ["mr_align-aaaaaaaa", f"{version.made_at:%Y-%m-%d}", "champion", "Acc 75.0", cell, "1.50"]

    def test_a_version_without_scores_has_none(self, folder_store, make):
        (shown,) = version_list([make(folder_store, "a")], {}).rows
        assert shown[3:5] == ["–", "–"]

    def test_scores_stand_beside_the_model_before(self, folder_store, make):
        record = make(folder_store, "a", **MEASURED).record
        rows = score_table(record).rows
        assert rows[0] == ["(all)", "Acc", "50.0", "75.0", ResultCell("+25.0 [+10.0, +40.0]", "better")]
        assert rows[1] == ["(all)", "Mis", "25.0", "–", "–"]

    def test_a_history_has_a_row_a_move(self, folder_store, make):
        version, aliases = make(folder_store, "a"), Aliases(folder_store)
        entry = aliases.move("champion", version.id, expected=None, by="ada", why="first")
        (shown,) = history_table([entry]).rows
        assert shown[2:] == ["move", "–", version.name, f"ada on {entry.host}", "first"]


def test_what_a_version_was_trained_on_is_read_from_it_alone(folder_store, make):
    version = make(folder_store, "a", trained=["d0", "d1"])
    assert trained_on(folder_store, version) == {"d0", "d1"}

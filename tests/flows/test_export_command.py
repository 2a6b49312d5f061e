"""What `mralign export` finds in the store: the champion, else the last run's adapter; and the results of just that."""

import json
from typing import Any

import pandas as pd
import pytest

from flows.commands.export import choose, export
from mralign_core.config import RunConfig
from mralign_core.config.retrain import RetrainConfig
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.models.lora import attach_lora, save_adapter
from mralign_core.schemas.questions import QUESTIONS
from mralign_core.storage import ArtifactStore
from mralign_core.storage.tables import write_table
from mralign_core.training.card import model_card
from mralign_core.versions.aliases import Aliases
from tasks.engine.last_run import remember
from tasks.engine.one_task import Inputs
from tests.core.training.test_card import RUN
from tests.core.training.tiny import make_model, make_tokenizer, randomise_adapter
from tests.version_store import CONFIG, publish_version


@pytest.fixture
def config(tmp_path):
    return RunConfig.model_validate(
        {
            "storage": {"root": str(tmp_path / "store")},
            "model": {"source": "pocket", "dtype": "float32", "device": "cpu"},
            "questions": {"train": "pocket", "eval": "pocket"},
            "train": {"lora_r": 4, "lora_alpha": 8},
        }
    )


@pytest.fixture
def publish(config, tmp_path):
    """Publish what `fill` writes into a folder."""
    store = ArtifactStore(config.storage)

    def publish(stage, key, fill, *parents):
        folder = tmp_path / "made" / stage / key
        folder.mkdir(parents=True)
        fill(folder)
        return store.publish(stage, key, folder, parents=parents, fingerprint={})

    return publish


@pytest.fixture
def adapter(config, publish):
    """The adapter of a last run, made from a model, questions and candidates."""
    rows: list[tuple[Any, ...]] = [
        ("q0", "a?", ["a"], "nq_open", "train", "", "exact_match", [], []),
        ("q1", "b?", ["b"], "popqa", "eval", "", "exact_match", [], []),
    ]
    model = make_model("qwen3")

    def write_model(folder):
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)

    def write_questions(folder):
        frame = QUESTIONS.require(pd.DataFrame(rows, columns=list(QUESTIONS.columns)).astype(object))
        write_table(folder, "questions.parquet", frame, QUESTIONS)

    def write_adapter(folder):
        adapted = attach_lora(model, config.train, seed=0)
        randomise_adapter(adapted)
        save_adapter(adapted, folder, base_model="pocket")
        card = model_card("pocket", "kto", config.train, seed=0, rows=[], counts={}, facts={}, metrics=[])
        (folder / "README.md").write_text(card.render())

    base = publish("model", "m", write_model)
    questions = publish("questions", "q", write_questions)
    candidates = publish(
        "candidates", "c", lambda folder: RUN.funnel.to_json(folder / "funnel.json", orient="records"), questions
    )
    ref = publish("adapter", "a", write_adapter, base, candidates)
    remember(config, **{"adapter:kto": ref})
    return ref


def write_results(folder):
    for name, frame in (("summary", RUN.summary), ("differences", RUN.differences)):
        assert frame is not None
        (folder / f"{name}.json").write_text(json.dumps(frame.replace("mr_align", "kto").to_dict("records")))


def write_page(folder):
    (folder / "report.html").write_text("…")


def export_kto(config, directory, named=None, merge=False, version=""):
    chosen = choose(config, version, "kto", {})
    found = export(config, Inputs(config, named or {}), chosen, directory, merge=merge)
    return found, (directory / "README.md").read_text()


@pytest.fixture
def make(config, adapter, publish, tmp_path):
    """Publish a version of the adapter; a letter is all of its key."""
    store = ArtifactStore(config.storage)
    made_from = {ref.stage: ref for ref in store.manifest(adapter).parents}

    def make(letter, variant="kto", **record):
        results = publish("results", letter * 64, write_results, adapter)
        parents = [adapter, made_from["model"], results]
        return publish_version(store, tmp_path, letter, variant, parents, **record)

    return make


def test_the_champion_is_exported_and_not_what_a_later_run_left(config, make, publish, tmp_path):
    champion = make("a")
    Aliases(ArtifactStore(config.storage)).move("champion", champion.id, expected=None, by="ada")
    remember(config, **{"adapter:kto": publish("adapter", "later", lambda folder: (folder / "x").write_text("y"))})
    chosen = choose(config, "", None, {})
    assert (chosen.version, chosen.why) == (champion, "kto-aaaaaaaa, which alias champion names")
    found, card = export_kto(config, tmp_path / "out")
    assert found.results == "from version kto-aaaaaaaa"
    assert "| (all) | Acc | 0.400 | 0.520 |" in card
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_the_configs_own_alias_is_exported_and_another_that_is_asked_for(config, make, tmp_path):
    champion, own = make("a"), make("b")
    aliases = Aliases(ArtifactStore(config.storage))
    aliases.move("champion", champion.id, expected=None, by="ada")
    config = config.model_copy(update={"retrain": RetrainConfig(alias="support")})
    nothing = choose(config, "", "kto", {})  # another config's champion is not taken in its place
    assert (nothing.version, nothing.why) == (
        None,
        "none: alias support names no version (mralign promote), so the last run's",
    )
    aliases.move("support", own.id, expected=None, by="ada")
    chosen = choose(config, "", None, {})
    assert (chosen.version, chosen.why) == (own, "kto-bbbbbbbb, which alias support names")
    chosen = choose(config, "", None, {}, "champion")
    assert (chosen.version, chosen.why) == (champion, "kto-aaaaaaaa, which alias champion names")


def test_an_alias_that_is_asked_for_and_names_nothing_is_an_error(config, make):
    make("a")
    with pytest.raises(ArtifactError, match=r"alias 'kto' names no version in .*mralign promote V --alias kto"):
        choose(config, "", None, {}, "kto")  # though a version's name begins so


def test_a_version_is_exported_that_is_not_the_champion(config, make, tmp_path):
    champion, other = make("a"), make("b")
    Aliases(ArtifactStore(config.storage)).move("champion", champion.id, expected=None, by="ada")
    assert choose(config, "kto-b", None, {}).why == f"{other.name}, as asked"
    found, _ = export_kto(config, tmp_path / "out", version="kto-b", merge=True)
    assert found.results == f"from version {other.name}"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_without_a_champion_the_last_runs_adapter_is_and_says_so(config, make):
    make("a")
    chosen = choose(config, "", "kto", {})
    assert chosen.version is None
    assert chosen.why == "none: alias champion names no version (mralign promote), so the last run's"
    assert choose(config, "", None, {}).variant == "mr_align"


@pytest.mark.parametrize(
    ("record", "says"),
    [({"variant": "sft"}, "of another variant, sft"), ({"base_model": "large"}, "of another base model, large")],
)
def test_a_champion_of_another_kind_is_not_exported_and_the_choice_says_so(config, make, record, says):
    Aliases(ArtifactStore(config.storage)).move("champion", make("a", **record).id, expected=None, by="ada")
    chosen = choose(config, "", "kto", {})
    assert (chosen.version, chosen.variant) == (None, "kto")
    assert chosen.why.endswith(f"{says}, so the last run's")


def test_a_champion_that_is_gone_is_not_gone_around(config, make):
    version = make("a")
    store = ArtifactStore(config.storage)
    Aliases(store).move("champion", version.id, expected=None, by="ada")
    store.remove("version", version.ref.key)
    with pytest.raises(ArtifactError, match="damaged or gone"):
        choose(config, "", None, {})


def test_contradictions_are_refused(config, make):
    make("a")
    with pytest.raises(ConfigError, match="version kto-aaaaaaaa is of variant kto"):
        choose(config, "kto-a", "sft", {})
    with pytest.raises(ConfigError, match="--version names adapter and results already"):
        choose(config, "kto-a", None, {"adapter:kto": "3f9a"})
    with pytest.raises(ConfigError, match="--alias names adapter and results already"):
        choose(config, "", None, {"adapter:kto": "3f9a"}, "champion")
    with pytest.raises(ConfigError, match="--version and --alias both say which version"):
        choose(config, "kto-a", None, {}, "champion")


def test_what_is_named_by_hand_goes_before_the_champion(config, make):
    Aliases(ArtifactStore(config.storage)).move("champion", make("a").id, expected=None, by="ada")
    assert choose(config, "", None, {"adapter:sft": "3f9a"}) == ("sft", None, "none: what --input names")
    assert choose(config, "", "kto", {"report": "3f9a"}) == ("kto", None, "none: what --input names")


def test_a_version_of_another_base_model_is_exported_with_its_own(config, make, tmp_path):
    other = {**CONFIG, "model": {"source": "hub", "path": "Qwen/Qwen3-4B", "dtype": "bfloat16"}}
    make("a", base_model="Qwen/Qwen3-4B", config=other)
    _, card = export_kto(config, tmp_path / "out", version="kto-a")
    assert card.startswith("---\nbase_model: Qwen/Qwen3-4B")


def test_report_on_the_adapter_completes_its_card(config, adapter, publish, tmp_path):
    results = publish("results", "s", write_results, adapter)
    remember(config, report=publish("report", "r", write_page, adapter, results))
    found, card = export_kto(config, tmp_path / "out")
    assert "| (all) | Acc | 0.400 | 0.520 |" in card
    assert "- questions to align on, nq_open: 1" in card
    assert "| matched | 300 | 900 |" in card
    assert found.results.startswith("from file://")
    assert found.serve.endswith(f"--max-lora-rank 8 --lora-modules kto={tmp_path / 'out'}")
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_report_on_another_adapter_is_left_out(config, adapter, publish, tmp_path):
    other = publish("adapter", "b", lambda folder: (folder / "x").write_text("another"))
    remember(config, report=publish("report", "r", write_page, other))
    found, card = export_kto(config, tmp_path / "out")
    assert "reports on another adapter" in found.results
    assert "Not evaluated" in card


def test_without_a_report_the_stage_to_run_is_told(config, adapter, tmp_path):
    found, card = export_kto(config, tmp_path / "out")
    assert "--only evaluate" in found.results
    assert "Not evaluated" in card


def test_report_without_gold_answers_has_no_results(config, adapter, publish, tmp_path):
    results = publish("results", "s", lambda folder: (folder / "variants.json").write_text("[]"), adapter)
    page = publish("report", "r", write_page, adapter, results)
    found, card = export_kto(config, tmp_path / "out", {"report": f"report/{page.key}"})
    assert "no question has a gold answer" in found.results
    assert "Not evaluated" in card


def test_merging_takes_the_model_that_the_adapter_was_trained_on(config, adapter, tmp_path):
    found, card = export_kto(config, tmp_path / "out", merge=True)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert found.rounding in card
    assert found.serve == f"vllm serve {tmp_path / 'out'} --dtype float32"


def test_adapter_that_is_not_there_is_told(config, tmp_path):
    with pytest.raises(ArtifactError, match="adapter:kto"):
        export_kto(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Rows for other trainers: TRL reads them for real; those of the others keep to what their loaders read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset
from trl import KTOConfig, KTOTrainer

from flows.commands.export_data import export_data, find_data
from mralign_core.errors import ConfigError
from mralign_core.exporting.trainer_formats import ROW_FORMATS, Chat, dataset_name
from mralign_core.models.families import named_family
from mralign_core.training.trl_kto import MRAlignKTOTrainer, _weigh_row
from tests.core.exporting.conftest import NOTHING_STATED

PAGE = Path(__file__).resolve().parents[3] / "docs" / "exporting-data.md"
LLAMA_FACTORY_ENTRY = {"file_name", "formatting", "columns", "tags", "subset", "split", "folder", "num_samples"}
"""Keys that LLaMA-Factory 0.9.5 reads of an entry of ``dataset_info.json`` with a local file (``data/parser.py``)."""
LLAMA_FACTORY_DEFAULTS = {"messages": "conversations", "role_tag": "from", "content_tag": "value"}
"""What it takes ShareGPT's columns and tags to be called where the entry does not say it."""


def config_of(folder):
    return KTOConfig(str(folder), max_length=None, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True)


def stored(run):
    return run.store.read_table(run.refs["candidates"], "candidates.parquet")


def lines_of(folder):
    text = (folder / "data" / "train-00000.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def code_blocks(folder, language):
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_the_ten_lines_of_the_page_train_on_an_export(run, exports, tmp_path, monkeypatch):
    ten_lines, of_the_folder = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in ten_lines.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(run.config.model.path)
    Path("out").mkdir()
    source = find_data(run.config, {}, "")
    export_data(run.config, source, Path("out/traces"), "parquet", NOTHING_STATED, lambda done, total: None)
    # A row of 8,000 letters takes long on a CPU.
    short = ".filter(lambda row: row['reasoning_tokens'] < 300).shuffle("
    shortened = ten_lines.replace(".shuffle(", short)
    names: dict[str, Any] = {}
    exec(compile(shortened, "docs/exporting-data.md", "exec"), names)
    by_prompt = {(tuple(row["prompt_ids"]), tuple(row["completion_ids"])): row for row in names["rows"]}
    for row in names["trainer"].train_dataset:
        told = by_prompt[tuple(row["prompt_ids"]), tuple(row["completion_ids"])]
        assert row["completion_weights"] == told["completion_weights"]
        assert row["completion_ids"][-1] == names["trainer"].processing_class.eos_token_id
    exec(compile(of_the_folder, "docs/exporting-data.md", "exec"), names)
    made = [json.loads(line) for line in Path("out/rows.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert made == lines_of(exports["llama-factory"])
    losses = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    assert names["trainer"].state.global_step > 0 and all(0 < loss < 10 for loss in losses)


def test_text_with_segments_weighs_every_token_as_the_ids_do(run, exports):
    """By the same function of the trainer that TRL's rows of text go through."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.config.model.path)
    by_ids = load_dataset(str(exports["parquet"]), split="train")
    by_text = load_dataset(str(exports["trl"]), split="train")
    assert by_text.column_names == ["prompt", "completion", "label", "segments"]
    for number, (ids, text) in enumerate(zip(by_ids, by_text, strict=True)):
        row = {**text, "completion_ids": ids["completion_ids"], "completion": text["completion"] + tokenizer.eos_token}
        assert _weigh_row(row, number, tokenizer)["completion_weights"] == ids["completion_weights"], ids["trace_id"]


@pytest.mark.parametrize("trainer", [KTOTrainer, MRAlignKTOTrainer])
def test_trl_prepares_rows_of_text_into_the_very_tokens_of_the_run(run, exports, tmp_path, trainer):
    rows = load_dataset(str(exports["trl"]), split="train").select(range(5))
    made = trainer(str(run.config.model.path), args=config_of(tmp_path), train_dataset=rows).train_dataset
    by_ids = load_dataset(str(exports["parquet"]), split="train").select(range(5))
    for name in ("prompt_ids", "completion_ids", "label"):
        assert made[name][:] == by_ids[name][:], name


def test_llama_factory_reads_what_its_entry_describes(run, exports):
    folder = exports["llama-factory"]
    ((name, entry),) = json.loads((folder / "dataset_info.json").read_text()).items()
    assert name == dataset_name("exported") and set(entry) <= LLAMA_FACTORY_ENTRY
    assert entry["formatting"] == "sharegpt" and (folder / entry["file_name"]).is_dir()
    columns = {**LLAMA_FACTORY_DEFAULTS, **entry["columns"]}
    rows, candidates = lines_of(folder), stored(run)
    assert len(rows) == len(candidates)
    for row, trace in zip(rows, candidates.itertuples(), strict=True):
        turns = row[columns["messages"]]
        assert [turn[columns["role_tag"]] for turn in turns] == ["human", "gpt"]
        assert turns[0][columns["content_tag"]] in trace.prompt and trace.question in turns[0]["value"]
        assert turns[1][columns["content_tag"]] == trace.completion
        assert row[columns["kto_tag"]] is (trace.polarity == "positive")
    (told,) = map(yaml.safe_load, code_blocks(folder, "yaml"))
    assert told["stage"] == "kto" and told["dataset"] == name
    assert load_dataset(str(folder), split="train")["kto_tag"][:] == [row["kto_tag"] for row in rows]


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_every_reader_finds_all_of_several_files(run, exports, tmp_path, monkeypatch, name):
    monkeypatch.setattr("mralign_core.exporting.data_set.ROWS_OF_FILE", 5)
    export_data(run.config, find_data(run.config, {}, ""), tmp_path / name, name, NOTHING_STATED, lambda *_: None)
    assert len(list((tmp_path / name / "data").iterdir())) == 3
    several, one = (load_dataset(str(folder), split="train") for folder in (tmp_path / name, exports[name]))
    assert several.to_list() == one.to_list()


def test_axolotls_config_on_the_card_names_the_columns_that_are_there(run, exports):
    folder = exports["axolotl"]
    (told,) = map(yaml.safe_load, code_blocks(folder, "yaml"))
    (section,) = told["datasets"]
    rows = load_dataset(str(folder), split=section["split"])
    assert told["rl"] == "kto"
    fields = {name.removeprefix("field_"): column for name, column in section["type"].items()}
    assert fields.keys() == {"prompt", "completion", "label"}  # of axolotl/prompt_strategies/kto/user_defined.py
    candidates = stored(run)
    assert rows[fields["prompt"]][:] == candidates["prompt"].tolist()
    assert rows[fields["completion"]][:] == candidates["completion"].tolist()
    assert rows[fields["label"]][:] == [polarity == "positive" for polarity in candidates["polarity"]]
    assert list(front_matter(folder)["configs"][0]["data_files"][0].values()) == ["train", "data/train-*.jsonl"]


def test_a_thinking_that_the_prompt_opened_begins_with_its_tag_in_messages():
    row = {"question": "Who?", "prompt": "…<think>\n", "completion": "Hm.\n</think>\n\nI."}
    turns = Chat(named_family("deepseek_r1"), "Think.").turns(row)
    assert turns == [
        {"from": "human", "value": "Think.\n\nQuestion: Who?"},
        {"from": "gpt", "value": "<think>\nHm.\n</think>\n\nI."},
    ]


def test_messages_need_a_family_and_say_how_it_is_told(run, tmp_path):
    source = find_data(run.config, {}, "")
    gone = source._replace(run=source.run._replace(model=None))
    with pytest.raises(ConfigError, match=r"--format llama-factory .* model\.family"):
        export_data(run.config, gone, tmp_path / "out", "llama-factory", NOTHING_STATED, lambda done, total: None)
    named = gone._replace(model=source.model.model_copy(update={"family": "qwen3"}))
    export_data(run.config, named, tmp_path / "out", "llama-factory", NOTHING_STATED, lambda done, total: None)
    assert lines_of(tmp_path / "out")[0]["conversations"][1]["value"].startswith("<think>")

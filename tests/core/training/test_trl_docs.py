"""The code in docs/trl.md runs as it is printed."""

import re
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.core.training.tiny import make_candidates, make_segment_weights, make_tokenizer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "trl.md"


def test_the_ten_lines_run_as_printed_and_so_do_the_lines_that_make_rows_of_tables(tmp_path, monkeypatch):
    ten_lines, made_up, from_tables = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in ten_lines.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    exec(compile(made_up, "docs/trl.md", "exec"), {})
    names: dict[str, Any] = {}
    exec(compile(ten_lines, "docs/trl.md", "exec"), names)
    row = names["trainer"].train_dataset[0]
    tokens = names["trainer"].processing_class.convert_ids_to_tokens(row["completion_ids"])
    weights = row["completion_weights"]
    told = {weight: "".join(t for t, w in zip(tokens, weights, strict=True) if w == weight) for weight in set(weights)}
    assert told[1.8] == "ItĠliesĠonĠaĠriver.ĊĊ" and told[0.6] == "SoĠIĠamĠsureĠofĠit."
    assert told[1.0].endswith("</think>TownĠ0<|end|>")
    weights_of_B = [each for name, each in load_file("aligned/adapter_model.safetensors").items() if "lora_B" in name]
    assert weights_of_B and all(each.abs().max() > 0 for each in weights_of_B)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "aligned")

    candidates = make_candidates(4)
    candidates.to_parquet("candidates.parquet")
    make_segment_weights(candidates).to_parquet("weights.parquet")
    make_tokenizer().save_pretrained("model")
    exec(compile(from_tables, "docs/trl.md", "exec"), names)
    assert len(names["rows"]) == 4 and set(names["rows"][0]["completion_weights"]) != {1.0}

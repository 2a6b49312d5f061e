"""What a card says, and that nothing which can't change the adapter is on it."""

import ast
import doctest
import json
import math
import re
import shlex

import pandas as pd
import pytest
import yaml

from mralign_core.config import TrainConfig
from mralign_core.training import card as card_module
from mralign_core.training.card import Card, model_card
from mralign_core.training.examples import TrainingExample
from mralign_core.training.export_card import RunFacts, adapter_card, merged_card, serve_adapter

ROWS = [
    TrainingExample("t0", "q0", [1], [2, 3, 4], [2.0, 0.5, 1.0], True),
    TrainingExample("t1", "q1", [1], [2, 3], [0.4, 1.0], False),
]
METRICS = [
    {
        "step": step,
        "loss": 0.5 / step,
        "implicit_reward_positive": 0.1 * step,
        "implicit_reward_negative": math.nan if step == 12 else -0.2,
        "kl_baseline": 0.03,
        "kl_raw": 0.03,
    }
    for step in range(1, 13)
]
RUN = RunFacts(
    questions=pd.DataFrame({"split": ["train", "train", "eval"], "source": ["nq_open", "nq_open", "popqa"]}),
    funnel=pd.DataFrame(
        [("drawn", 1200, 0, ""), ("matched", 300, 900, "no gold answer")], columns=["step", "kept", "dropped", "reason"]
    ),
    summary=pd.DataFrame(
        [
            {
                "variant": variant,
                "stratum": "(all)",
                "scoring": "exact_match",
                "num_questions": 42,
                "acc": acc,
                "mis": mis,
            }
            | {"em_thought": 0.6, "em_answer": 0.5}
            for variant, acc, mis in [("off", None, None), ("on", 0.4, 0.3), ("mr_align", 0.52, 0.18)]
        ]
    ),
    differences=pd.DataFrame(
        [
            {"variant": "mr_align", "baseline": baseline, "stratum": "(all)", "metric": metric}
            | {"difference": shift, "low": shift - 0.05, "high": shift + 0.05, "num_questions": 42}
            for baseline in ("on", "kto")
            for metric, shift in [("acc", 0.12), ("mis", -0.12), ("em_thought", 0.0), ("em_answer", 0.0)]
        ]
    ),
    confidence=0.95,
)


def card(section, variant="mr_align", **more):
    return model_card(
        "org/model", variant, section, seed=7, rows=ROWS, counts={"rows": 2, "too_long": 1}, facts={}, metrics=METRICS
    )


def test_doctests():
    assert doctest.testmod(card_module).failed == 0


def front_matter(text):
    return yaml.safe_load(text.split("---")[1])


def test_card_states_data_weights_settings_and_what_training_reached():
    text = card(TrainConfig(kl_every=4, kl_decay=0.5)).render()
    assert front_matter(text)["base_model"] == "org/model"
    assert "- too long: 1" in text
    assert "- positive: 3 tokens, mean 1.1667, standard deviation 0.6236" in text
    assert {"- seed: 7", "- kl every: 4", "- kl decay: 0.5", "- global batch size: 64"} <= set(text.splitlines())
    assert "- optimiser steps: 12; what follows is the mean over the last 10" in text
    assert "- implicit reward of positive traces (nats): 0.7500" in text
    assert "- implicit reward of negative traces (nats): -0.2000" in text
    assert "- KL estimate (nats): 0.0300" in text


def test_sft_card_has_neither_rewards_nor_settings_of_kto():
    sft = [
        {
            **row,
            "implicit_reward_positive": math.nan,
            "implicit_reward_negative": math.nan,
            "kl_baseline": math.nan,
            "kl_raw": math.nan,
        }
        for row in METRICS
    ]
    text = model_card("m", "sft", TrainConfig(), seed=0, rows=ROWS[:1], counts={}, facts={}, metrics=sft).render()
    assert "reward of" not in text
    assert "beta" not in text
    assert "- sft learning rate: 0.0001" in text


def test_operational_fields_are_not_on_the_card():
    operational = {
        "tokens_per_forward": 17,
        "gradient_checkpointing": "always",
        "on_out_of_memory": "stop",
        "checkpoint_minutes": 3.5,
        "accelerate_config": "elsewhere.yaml",
        "report_to": "none",
        "log_folder": "elsewhere",
        "where": "deployment",
        "trace_logps": True,
    }
    fields = {name for name, field in TrainConfig.model_fields.items() if field.json_schema_extra}
    assert fields == set(operational)
    assert card(TrainConfig(**operational)) == card(TrainConfig())


def test_exported_card_adds_sources_yield_and_results():
    text = adapter_card(card(TrainConfig()), "org/model", "mr_align", RUN, adapter_config={"r": 32}).render()
    assert text.startswith(card(TrainConfig()).render().partition("## How to use")[0])
    assert "- questions to align on, nq_open: 2" in text
    assert "| matched | 300 | 900 | no gold answer |" in text
    assert "| (all) | Acc | 0.400 | 0.520 | +0.120 (+0.070 to +0.170) |" in text
    assert "| (all) | Mis | 0.300 | 0.180 | -0.120 (-0.170 to -0.070) |" in text
    assert "42 questions" in text
    assert text.count("| Acc |") == 1
    assert "--max-lora-rank 32 --lora-modules mr_align=" in text


def test_exported_card_explains_the_metrics_that_it_shows():
    assert RUN.summary is not None and RUN.differences is not None
    summary, differences = (frame.copy() for frame in (RUN.summary, RUN.differences))
    summary["scoring"] = "number"
    text = adapter_card(
        card(TrainConfig()),
        "org/model",
        "mr_align",
        RUN._replace(summary=summary, differences=differences),
        adapter_config={"r": 32},
    ).render()
    assert "accuracy: the share of right answers." in text and "| (all) | accuracy | 0.500 | 0.500 |" in text
    assert "Acc:" not in text and "Mis" not in text.partition("## Results")[2]
    both = adapter_card(card(TrainConfig()), "org/model", "mr_align", RUN, adapter_config={"r": 32}).render()
    assert "Acc: thinking and answer both name a gold answer; Mis: exactly one of them does." in both
    assert "accuracy:" not in both


def test_card_without_a_report_says_so():
    unevaluated = RUN._replace(summary=None, differences=None)
    text = adapter_card(card(TrainConfig()), "m", "mr_align", unevaluated, adapter_config={"r": 8}).render()
    assert "Not evaluated" in text
    assert "| Acc |" not in text


def test_merged_card_is_of_a_model_not_of_an_adapter():
    text = merged_card(
        card(TrainConfig()), "org/model", "mr_align", RUN, dtype="float32", rounding="It took 3%."
    ).render()
    assert front_matter(text)["library_name"] == "transformers"
    assert front_matter(text)["tags"] == ["mr-align"]
    assert "PeftModel" not in text
    assert "It took 3%." in text
    assert "`vllm serve path/to/this/folder --dtype float32`" in text
    assert "| (all) | Acc |" in text


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (32, 32), (33, 64), (257, 320), (512, 512)])
def test_vllm_is_told_a_rank_that_it_has(rank, room):
    assert f"--max-lora-rank {room} " in serve_adapter("m", "kto", {"r": rank})


def test_rank_that_vllm_has_no_room_for_is_to_be_merged():
    assert serve_adapter("m", "kto", {"r": 513}).startswith("none: rank 513")


def test_adapter_on_experts_is_served_in_their_layout():
    command = serve_adapter("m", "kto", {"r": 8, "target_parameters": ["experts.down_proj"]}, "/a b/out")
    *_, option, flag, modules = shlex.split(command)
    assert (option, flag) == ("--enable-mixed-moe-lora-format", "--lora-modules")
    assert json.loads(modules) == {"name": "kto", "path": "/a b/out", "is_3d_lora_weight": True}


HOSTILE = [
    "my: model # 1",
    "'quoted' \"twice\"",
    "a\n---\nlicense: mit\n# Owned\n\n## Data\n",
    "{{ x }} {0} %s",
    "日本 – ü 🍎",
    "null",
    "- [x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "![p](http://x/p.png) `tick` ``two``",
    "a | b | c",
    "back\\slash",
    "@user: *&anchor !!python/object:os.system",
    "x" * 200 + " " + "y" * 200,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_data_in_the_front_matter_and_text_in_the_card(name):
    whole = model_card(name, "kto", TrainConfig(), seed=0, rows=ROWS, counts={}, facts={"from": name}, metrics=METRICS)
    text = whole.render()
    assert Card.parse(text) == whole
    run = RUN._replace(
        questions=pd.DataFrame({"split": ["train"], "source": [name]}),
        funnel=pd.DataFrame([("drawn", 1, 1, name)], columns=["step", "kept", "dropped", "reason"]),
        summary=None,
        differences=None,
    )
    exported = adapter_card(whole, name, "kto", run, adapter_config={"r": 8}).render()
    merged = merged_card(whole, name, "kto", run, dtype="float32", rounding="").render()
    shown = " ".join(name.split())
    for one in (text, exported, merged):
        _, front, body = one.split("---\n", 2)
        assert yaml.safe_load(front)["base_model"] == shown
        assert yaml.safe_load(front)["license"] == "other" and len(yaml.safe_load(front)) == 5
        headings = [line for line in body.splitlines() if line.startswith("#")]
        assert len(headings) == len(set(headings)) and not any("Owned" in line for line in headings[1:])
        prose = body.partition("```python")[0]
        assert not re.search(r"(?<!\\)(<script|\[x\]|!\[p\])", prose)
        assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in body.splitlines() if line.startswith("|"))
    code = exported.partition("```python\n")[2].partition("```\n")[0]
    named = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert shown in named


@pytest.mark.parametrize("name", ["my model", "a; rm -rf ~", "$(id)", "`id`"])
def test_a_name_is_one_word_of_the_command_that_serves_it(name):
    assert shlex.split(serve_adapter(name, "kto", {"r": 8}))[:4] == ["vllm", "serve", name, "--enable-lora"]

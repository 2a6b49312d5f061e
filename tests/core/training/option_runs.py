"""Options of TRL that need a process of their own: ``python -m tests.core.training.option_runs KIND FOLDER``.

``liger`` is Liger's kernels in Triton's interpreter (``TRITON_INTERPRET=1``), ``zero2`` and ``zero3`` are stages of
DeepSpeed, for processes that torchrun started (``DS_ACCELERATOR=cpu``). A run trains a tiny model, and leaves
``metrics.json`` and an adapter.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig
from trl import KTOConfig

from mralign_core.training.trl_kto import MRAlignKTOTrainer, rows_for_trl
from tests.core.training.test_trainer import make_examples
from tests.core.training.tiny import make_model, make_tokenizer

ROWS_PER_STEP = 4
METRICS = ("loss", "rewards/chosen", "rewards/rejected", "kl_raw", "grad_norm")
ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_force_ds_cpu_optimizer": False,
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
    },
}


def make_trainer(folder, model, *, lora=True, **options):
    """Over eight rows; with LoRA, or with a reference that is a model of its own."""
    settings = {
        "per_device_train_batch_size": ROWS_PER_STEP,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_length": None,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **options,
    }
    return MRAlignKTOTrainer(
        model,
        None if lora else make_model("qwen3").to(model.dtype),
        KTOConfig(str(folder), **settings),
        train_dataset=rows_for_trl(make_examples(8, num_questions=5)),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if lora else None,
    )


def finish(trainer):
    """Train to the end."""
    trainer.train()
    trainer.save_model()
    if trainer.accelerator.is_main_process:
        steps = [[logs[name] for name in METRICS] for logs in trainer.state.log_history if "loss" in logs]
        Path(trainer.args.output_dir, "metrics.json").write_text(json.dumps(steps))


def train_plainly(folder):
    """By none of the options."""
    finish(make_trainer(folder, make_model("qwen3"), use_cpu=True))


def train_by_zero(folder, stage):
    """By DeepSpeed, with the rows of a step divided among the processes."""
    model = folder / "model"
    make_model("qwen3").save_pretrained(model)
    # accelerate 1.15 chooses no backend for DeepSpeed without a GPU, and takes several processes for one each.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    state = PartialState(backend="gloo")
    trainer = make_trainer(
        folder,
        str(model),
        per_device_train_batch_size=ROWS_PER_STEP // state.num_processes,
        accelerator_config={"use_configured_state": True},
        deepspeed={**ZERO, "zero_optimization": {"stage": stage}},
    )
    finish(trainer)
    assert trainer.model_wrapped.zero_optimization_stage() == stage
    assert trainer.model_wrapped.dp_world_size == state.num_processes == int(os.environ["WORLD_SIZE"])


def complete_the_interpreter():
    """What Triton 3.9's interpreter lacks: a number as the kernels' argument, and bodies of CUDA's functions."""
    import numpy as np
    from liger_kernel.ops import rms_norm
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def convert_floats_too(argument):
        if not isinstance(argument, float):
            return convert(argument)
        value = interpreter.TensorHandle(np.array([argument], dtype=np.float32), language.float32)
        return language.tensor(value, language.float32)

    interpreter._implicit_cvt = convert_floats_too
    rms_norm.rsqrt = lambda x: language.math.rsqrt(x)  # the interpreter replaces it while a kernel runs


def train_by_liger(folder):
    """In float32; and in float16 the first step of policies that are their references, which come by other ways."""
    complete_the_interpreter()
    options = {"use_cpu": True, "use_liger_kernel": True}
    # All models first: Liger changes the classes of those that come after it, too.
    model = make_model("qwen3")
    one_step = {"max_steps": 1, "per_device_train_batch_size": 8}
    untrained = [
        make_trainer(folder, make_model("qwen3").half(), **options, **one_step, **way)
        for way in ({"precompute_ref_log_probs": True}, {"lora": False})
    ]
    for trainer in untrained:
        trainer.train()
        logs = trainer.state.log_history[0]
        assert logs["rewards/margins"] == logs["kl_raw"] == 0, "policy and reference are computed in two ways"
    trainer = make_trainer(folder, model, **options)
    finish(trainer)
    assert {"LigerRMSNorm", "LigerSwiGLUMLP"} <= {module._get_name() for module in trainer.model.modules()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, target = sys.argv[1], Path(sys.argv[2])
    train_by_liger(target) if kind == "liger" else train_by_zero(target, int(kind.removeprefix("zero")))

"""Options of TRL under which training is the same training; each wants packages that the project does not."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from safetensors.torch import load_file

from tests.core.training.option_runs import train_plainly

ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WANTED = {"liger": ("liger_kernel", "triton"), "zero2": ("deepspeed",), "zero3": ("deepspeed",)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train_plainly(folder)
    return folder


@pytest.mark.parametrize("kind", WANTED)
def test_a_training_by_an_option_of_trl_is_the_same_training(kind, request, tmp_path):
    """In each step's loss, rewards, z0 and gradient norm, and in the adapter at its end."""
    if missing := [name for name in WANTED[kind] if not find_spec(name)]:
        pytest.skip(f"{' and '.join(missing)} not installed")
    command = [*(ALONE if kind == "liger" else TWO), "-m", "tests.core.training.option_runs", kind, str(tmp_path)]
    settings = {"TRITON_INTERPRET": "1"} if kind == "liger" else {"DS_ACCELERATOR": "cpu"}
    run = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    plain = request.getfixturevalue("plain")
    expected, found = (json.loads((folder / "metrics.json").read_text()) for folder in (plain, tmp_path))
    assert len(found) == len(expected) == 4
    for step, other in zip(found, expected, strict=True):
        assert step == pytest.approx(other, rel=1e-4, abs=1e-5)
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (plain, tmp_path)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, weights in adapters[0].items():
        assert (adapters[1][name] - weights).abs().max() <= 1e-4 * weights.abs().max(), name

"""`make gpu` without a GPU: every part's stand-in runs, and the command bears what a part may do to it."""

import doctest
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    child,
    findings,
    kernels,
    memory,
    page,
    precision,
    runner,
    sampling,
    several,
    shapes,
    training,
    wheels,
)
from benchmarks.gpu.findings import Findings, NotShownHere, Setting
from benchmarks.gpu.parts import NAMES, PARTS, Part, chosen
from mralign_core.generation import Sample
from mralign_core.training.fit import train_adapter
from tests.core.generation.sampler_fixtures import stand_in_for_vllm

ROOT = Path(__file__).resolve().parents[3]
CPU = Setting("cpu", {})
IN_THIS_PROCESS = [name for name in NAMES if name not in ("several", "vllm")]
ENDINGS = {
    "well": "write({'status': 'done', 'line': 'all is well', 'values': {'speed': 3}})",
    "slow": "write({'status': 'cut', 'values': {'speed': 1}}); say(Popen(['sleep', '60']).pid); sleep(60)",
    "killed": "write({'status': 'cut', 'values': {'speed': 2}}); say('last words'); os.kill(os.getpid(), 9)",
    "mute": "sys.exit(3)",
    "infinite": "write({'status': 'done', 'values': {'speed': float('-inf')}})",
    "heavy": "import tempfile; say(tempfile.mkdtemp()); sleep(60)",
    "told": "write({'status': 'done', 'line': sys.stdin.read()})",
}
"""What parts do that are no more than Python's standard library."""


def found_by(name, folder):
    found = Findings(folder / f"{name}.json")
    child.run(name, CPU, found)
    assert json.loads(found.path.read_text()) == found.record
    return found.record


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What each part finds on the CPU, in its small shape."""
    folder = tmp_path_factory.mktemp("gpu")
    found = {name: found_by(name, folder) for name in IN_THIS_PROCESS}
    with stand_in_for_vllm():
        found["vllm"] = found_by("vllm", folder)
    return found


@pytest.mark.parametrize("module", [findings, page, shapes, training])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", [*IN_THIS_PROCESS, "vllm"])
def test_every_part_runs_in_a_small_shape_on_the_cpu(stand_ins, name):
    found = stand_ins[name]
    assert (found["status"], found.get("why")) == ("done", None), found.get("traceback")
    assert found["line"]
    assert found["checks"] or name in ("card", "vllm")


def test_the_page_shows_figures_that_parts_find(stand_ins):
    measured = {(part, name) for part, found in stand_ins.items() for name in found["values"]}
    on_a_card_only = {("training", "peak_over_estimate")}
    assert {(part, name) for part, name, _ in page.FIGURES} - on_a_card_only <= measured


def test_a_kernel_that_sees_other_rows_is_found_out(tmp_path, monkeypatch):
    attend = kernels.packed_attention

    def across_rows(module, query, *others, **options):
        if query.dtype == torch.bfloat16:
            del options["row_lengths"]
        return attend(module, query, *others, **options)

    monkeypatch.setattr(kernels, "packed_attention", across_rows)
    found = found_by("kernels", tmp_path)
    assert found["status"] == "failed"
    assert "attention in bfloat16, output" in found["why"]
    assert "float32" not in found["why"]


def test_a_precision_that_learns_nothing_is_found_out(tmp_path, monkeypatch):
    losses = precision._losses
    monkeypatch.setattr(precision, "_losses", lambda *job: [0.625] * 4 if job[2] == "bfloat16" else losses(*job))
    found = found_by("precision", tmp_path)
    failed = [check["name"] for check in found["checks"] if not check["ok"]]
    assert failed == ["loss in bfloat16, from the CPU's in float32", "too little learnt in bfloat16"]


def test_a_job_that_never_runs_out_of_memory_shows_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_too_little_memory", lambda *_: memory.contextlib.nullcontext())
    found = Findings(tmp_path / "memory.json")
    memory._run_out(memory._workload(CPU), found)
    assert [check["name"] for check in found.record["checks"] if not check["ok"]] == [
        "it never ran out of memory, so nothing is shown"
    ]


def test_several_processes_are_compared_with_one(tmp_path, monkeypatch):
    """Without the processes: tests/core/processes has those, and `make soak` runs this part whole."""
    jobs = []

    def launched(job):
        jobs.append(job)
        settings = json.dumps(job.train.accelerate_config)
        seed = 1 if "fsdp2" in settings else job.seed
        return train_adapter(job.model_copy(update={"seed": seed}))

    monkeypatch.setattr(several, "launch_adapter", launched)
    found = found_by("several", tmp_path)
    assert [Path(job.train.accelerate_config).stem for job in jobs] == ["ddp", "fsdp2"]
    assert [check["ok"] for check in found["checks"]] == [True, False]  # the second had another seed
    assert found["checks"][0]["found"] == 0


def test_what_this_machine_lacks_is_skipped_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(several.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotShownHere, match="one card"):
        several.compare(Setting("cuda", {}), Findings(tmp_path / "several.json"))
    assert found_by("vllm", tmp_path)["why"].startswith("vLLM is not installed")
    monkeypatch.setitem(sys.modules, "benchmarks.train_vs_trl.trl_contender", None)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu.peers", raising=False)
    assert found_by("trl", tmp_path)["status"] == "failed"  # ours to have, so no reason to skip


def test_an_error_in_one_comparison_leaves_the_others(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: invalid argument")

    monkeypatch.setattr(kernels, "_attention", broken)
    found = found_by("kernels", tmp_path)
    assert found["status"] == "failed"
    assert found["why"] == "attention in torch.bfloat16: RuntimeError: CUDA error: invalid argument"
    assert "in broken" in found["traceback"]
    assert found["notes"][1] == "attention in torch.float32: RuntimeError: CUDA error: invalid argument"
    assert any(check["name"].startswith("drawn tokens") for check in found["checks"])


def test_a_package_of_others_that_is_missing_is_a_reason_to_skip(tmp_path, monkeypatch):
    def lacking(*_):
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")

    monkeypatch.setattr(kernels, "compare", lacking)
    found = found_by("kernels", tmp_path)
    assert (found["status"], found["why"]) == ("skipped", "package datasets is not installed (docs/gpu.md)")


def test_fewer_layers_are_taken_where_the_card_has_less_room(tmp_path, monkeypatch):
    found = Findings(tmp_path / "training.json")
    for free, layers in ((140e9, 36), (48e9, 36), (24e9, 24), (1e9, 2)):
        monkeypatch.setattr(shapes.torch.cuda, "mem_get_info", lambda free=free: (free, free))
        assert shapes.large(Setting("cuda", {}), found).layers == layers
    assert found.record["notes"][0].startswith("24 GB are free: 24 of 36 layers")
    before = list(found.record["notes"])
    monkeypatch.setattr(shapes.torch.cuda, "mem_get_info", lambda: (24e9, 24e9))
    assert shapes.large(Setting("cuda", {}), found, layers=4).layers == 4
    assert found.record["notes"] == before, "there was room for all that was wanted"


def test_the_end_is_counted_where_it_was_drawn(monkeypatch):
    samples = [Sample("", [], [1, 2], "", "stop", end_token_id=9), Sample("", [], [1, 2, 3], "", "length")]
    monkeypatch.setattr(sampling, "_draw", lambda *_: samples)
    clock = iter((0.0, 2.0))
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))
    assert sampling._speed(None, 2, 3) == 6 / 2  # type: ignore[arg-type]


def test_a_figure_that_is_not_finite_is_a_text_in_both_files(tmp_path):
    def strict(path):
        return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    found = Findings(tmp_path / "training.json")
    found.value("losses", [0.5, float("nan")])
    found.check("peak", float("inf"), 1)
    assert strict(found.path)["values"] == {"losses": [0.5, "nan"]}
    record, _ = run_fakes(tmp_path / "run", fakes("infinite"))
    assert strict(tmp_path / "run" / "gpu.json")["parts"]["infinite"]["values"] == {"speed": "-inf"}
    assert "-inf" in page.render(record)
    assert page._number("nan") == "nan"


def fake(part, out):
    """The command of a part that does one of :data:`ENDINGS`."""
    head = "import json, os, sys; from subprocess import Popen; from time import sleep\n"
    write = "def write(found): open(sys.argv[1], 'w').write(json.dumps(found))\n"
    write += "def say(text): print(text, flush=True)\n"
    return [sys.executable, "-c", head + write + ENDINGS[part.name], str(out)]


def fakes(*names, limit_s=20.0):
    return [Part(name, "", 0.7 if name == "slow" else limit_s, f"what {name} shows") for name in names]


def run_fakes(folder, parts, limit_s=100.0):
    about = {"started": "now", "device": "cuda", "host": {"torch": "2.13", "python": "3.12"}, "problem": ""}
    pages = []
    made = runner.Runner(
        folder, about, fake, limit_s=limit_s, environment={}, on_change=lambda record: pages.append(page.render(record))
    )
    return made.run(parts), pages


def test_a_part_that_hangs_or_dies_leaves_what_it_had_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "LEAST_S", 0.1)
    record, pages = run_fakes(tmp_path, fakes("slow", "killed", "mute", "well", "told"))
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    ended = {name: (part["status"], part.get("why"), part["values"]) for name, part in record["parts"].items()}
    assert ended["slow"] == ("cut", "cut off at its limit of 1 s", {"speed": 1})
    assert ended["killed"] == ("died", "its process ended without a word, by signal 9", {"speed": 2})
    assert ended["mute"] == ("died", "its process ended without a word, by exit code 3", {})
    assert ended["well"] == ("done", None, {"speed": 3})
    assert "last words" in record["parts"]["killed"]["traceback"]
    assert json.loads(record["parts"]["told"]["line"])["well"] == {"speed": 3}  # what came before it
    assert "[4/5] well       up to 20 s … done in 0 s: all is well" in capsys.readouterr().out
    grandchild = int((tmp_path / "slow.log").read_text())
    assert not is_running(grandchild)
    assert len(pages) == 6
    assert "waiting" in pages[1]
    assert page.headline(record) == "2 of 5 parts done, 2 died (killed, mute), 1 cut (slow)"


def test_a_part_that_is_cut_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_S", 0.1)
    record, _ = run_fakes(tmp_path, [Part("heavy", "", 0.7, "")])
    made = Path((tmp_path / "heavy.log").read_text().strip())
    assert record["parts"]["heavy"]["status"] == "cut"
    assert made.is_absolute() and not made.exists() and not made.parent.exists()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path):
    record, _ = run_fakes(tmp_path, fakes("well", "told"), limit_s=5.0)
    assert [part["status"] for part in record["parts"].values()] == ["skipped", "skipped"]
    assert "--limit-s" in record["parts"]["told"]["why"]


def test_an_interrupted_run_keeps_what_it_found_and_ends_its_part(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_wait", lambda process, *_: interrupted(process, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_fakes(tmp_path, [Part("slow", "", 50.0, ""), *fakes("well")])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert [(part["status"], part.get("why")) for part in record["parts"].values()] == [
        ("cut", "interrupted"),
        ("waiting", None),
    ]
    assert record["parts"]["slow"]["values"] == {"speed": 1}


def interrupted(process, folder):
    until = time.monotonic() + 20
    while not (folder / "slow.log").read_text() and time.monotonic() < until:
        time.sleep(0.02)
    raise KeyboardInterrupt


def fake_python(path, *, cards, lacks=()):
    host = json.dumps({"python": "3.12.3", "torch": "2.13", "cards": cards, "lacks": lacks})
    path.write_text(f"#!/bin/sh\necho '{host}'\n")
    path.chmod(0o755)
    return str(path)


def test_the_python_whose_torch_sees_a_card_is_taken(tmp_path):
    without, with_card = (fake_python(tmp_path / f"python{cards}", cards=cards) for cards in (0, 1))
    none, nothing = str(tmp_path / "no-python"), shutil.which("true") or "true"
    assert command.find_python([none, nothing, without, with_card])[0] == with_card
    assert command.find_python([none, without])[0] == without
    without_peft = fake_python(tmp_path / "bare", cards=1, lacks=["peft"])
    assert command.find_python([without_peft, without])[0] == without
    assert command.find_python([none, nothing]) == (f"{none}, {nothing}", None)


def test_the_command_says_what_came_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "interrupt_on_terminate", lambda: None)
    monkeypatch.setattr(command, "child_command", lambda python, device: fake)
    monkeypatch.setattr(wheels, "missing", lambda python, site: [])
    monkeypatch.setattr(command, "chosen", lambda names: fakes(*names.split(",")))
    python = fake_python(tmp_path / "python", cards=0)
    options = ["--python", python, "--folder", str(tmp_path / "gpu")]
    assert command.main([*options, "--parts", "well"]) == 0
    assert "no figure means anything" in capsys.readouterr().out
    assert "Stand-in on the CPU: 1 of 1 parts done" in (tmp_path / "gpu" / "index.html").read_text()
    assert command.main([*options, "--parts", "mute,well"]) == 1
    assert command.main(["--python", str(tmp_path / "no-python")]) == command.NOTHING_RUN
    assert "make gpu PYTHON=" in capsys.readouterr().err
    bare = fake_python(tmp_path / "bare", cards=1, lacks=["peft"])
    assert command.main(["--python", bare]) == command.NOTHING_RUN
    assert f"{bare} lacks peft: pip install" in capsys.readouterr().err


def test_parts_are_named_once_and_listed(capsys):
    assert len(set(NAMES)) == len(PARTS)
    assert [part.name for part in chosen("trl, card")] == ["card", "trl"]
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)
    with pytest.raises(SystemExit):
        command.main(["--parts", "cards"])
    assert "there is no part cards" in capsys.readouterr().err


def test_texts_on_the_page_are_text_and_it_needs_no_other_file(tmp_path):
    part = {"status": "failed", "shows": "<i>", "limit_s": 9, "seconds": 1.5, "line": "<b>", "why": "a < b"}
    part |= {"values": {"x_s": 0.5, "y": [1, 2]}, "checks": [{"name": "<", "found": 2.0, "limit": 1.0, "ok": False}]}
    record = {"device": "cuda", "host": {"torch": "2", "python": "3"}, "started": "now", "parts": {"card": part}}
    html = page.render(record)
    assert "<b>" not in html
    assert "&lt;b&gt;; a &lt; b" in html
    assert "not measured" in html
    assert "http" not in html.replace("http-equiv", "")


def test_packages_are_pinned_and_all_there(tmp_path):
    assert all("==" in name for name in wheels.pinned(wheels.NEEDED))
    assert wheels.missing(sys.executable, tmp_path) == []


def test_packages_that_are_too_old_are_missing(tmp_path, monkeypatch):
    assert wheels.least_versions()["pandas"] == "3.0"
    monkeypatch.setattr(wheels, "least_versions", lambda: {"pydantic": "99.1", "pandas": "3.0", "six": "1.99"})
    assert wheels.missing(sys.executable, tmp_path) == ["pydantic", "pydantic-core", "six"]


def test_what_is_missing_is_installed_and_what_can_not_be_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "bitsandbytes-0.50-py3-none-any.whl").touch()
    asked = []

    def pip(arguments, **_):
        names = [each for each in arguments if "==" in each or each == "bitsandbytes"]
        asked.append(names)
        is_bad = any(each.startswith("xxhash") for each in names)
        return subprocess.CompletedProcess(arguments, int(is_bad), "looking\nno wheel of xxhash" if is_bad else "")

    monkeypatch.setattr(wheels, "missing", lambda *_: ["six", "xxhash"])
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    problem = wheels.install("python", tmp_path / "site", folder)
    assert problem.startswith("xxhash could not be installed (no wheel of xxhash)")
    assert [len(names) for names in asked] == [3, 1, 1, 1]  # together first, then each alone


def test_an_index_that_is_out_of_reach_is_asked_once(tmp_path, monkeypatch):
    asked, pip = [], subprocess.run

    def counted(arguments, **options):
        asked.append(arguments)
        return pip([*arguments, "--index-url", "http://127.0.0.1:9/simple"], **options)

    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(wheels, "missing", lambda *_: ["six", "xxhash"])
    monkeypatch.setattr(wheels.subprocess, "run", counted)
    problem = wheels.install(sys.executable, tmp_path / "site", tmp_path / "no-wheels")
    assert problem.startswith("six, xxhash could not be installed (the package index can't be reached): gather their")
    assert len(asked) == 1


def test_a_python_that_is_too_old_gives_way_to_that_of_the_environment(tmp_path):
    """`python3` of a host may be too old to read even what starts the parts."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "venv").mkdir()
    old, ours = tmp_path / "bin" / "python3", tmp_path / "venv" / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    ours.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in (old, ours):
        path.chmod(0o755)
    # Of the `make test` that this runs in, it is to know nothing: it would say where it is, and take its options.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment = {**outside, "PATH": f"{old.parent}{os.pathsep}{os.environ['PATH']}"}
    command_line = ["make", "gpu", "ARGS=--list", f"BIN={ours.parent}"]
    reply = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (reply.returncode, reply.stdout.split()[0]) == (0, "card"), reply.stderr
    ours.unlink()
    reply = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert reply.returncode == 2 and "make gpu PYTHON=" in reply.stderr


def test_a_part_ends_when_the_command_is_gone(tmp_path):
    """Killed, it could not end its part by itself."""
    script = (
        "import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(p.pid); "
    )
    watching = (
        "import os, threading, time; from benchmarks.gpu import child; child.LOOK_EVERY_S = 0.05; "
        "threading.Thread(target=child._end_with, args=(os.getppid(),)).start(); time.sleep(30)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-u", "-c", script + "time.sleep(30)", watching], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert starter.stdout
    pid = int(starter.stdout.readline())
    time.sleep(0.5)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    until = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


@pytest.mark.soak
def test_nothing_is_needed_but_what_is_named(tmp_path):
    """The whole command, by a Python that has what it asks for and the packages that it would install."""
    site = tmp_path / "site-packages"
    site.mkdir()
    for name in closure(wheels.GIVEN) | set(wheels.NEEDED):
        link(distribution(name), site)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "PYTHONNOUSERSITE": "1"}
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.base_prefix}/bin/python3 -S "$@"\n')
    python.chmod(0o755)
    arguments = ["--cpu", "--python", str(python), "--folder", str(tmp_path / "gpu"), "--limit-s", "2400"]
    reply = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    record = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    ended = {name: (part["status"], part.get("why")) for name, part in record["parts"].items()}
    assert ended.pop("vllm")[0] == "skipped"
    assert set(ended.values()) == {("done", None)}, ended
    assert reply.returncode == 0
    assert "installing" not in reply.stdout


def closure(names):
    """Distributions that some need to be installed, with those themselves."""
    waiting, found = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def link(installed, site):
    tops = {str(file).partition("/")[0] for file in installed.files or []} - {"..", "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(installed.locate_file(top))

"""The command as its user meets it: what each mistake leads to, and what is left in the store afterwards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.commands.cli import asking_again, read_config
from mralign_core.storage import ArtifactStore
from tasks.prepare import load_questions
from tests.pocket_store import SMALL, small_config

ROOT = Path(__file__).resolve().parents[2]
THINKING = "I recall that it is Puville.\n\nLet me check that.\n\nIt seems it is Puville."
POCKET_FAMILY = """
name: pocket
mode_on: {template: {enable_thinking: true}}
mode_off: {template: {enable_thinking: false}}
layout: "<think>{thinking}</think>\\n\\n<answer> {answer}</answer>"
"""
"""How the pocket model writes: its vocabulary has no word for a tag on a line of its own."""


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


def settings(root: Path, **fields: object) -> list[str]:
    """``--set`` options: the small pocket config on a store, and fields as ``section__field=value``."""
    values = {**SMALL, "storage.root": str(root)} | {name.replace("__", "."): v for name, v in fields.items()}
    return [f"--set={name}={json.dumps(value)}" for name, value in values.items()]


def write_lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def artifacts(root: Path) -> set[str]:
    """Files of a store but for records: a mistake may leave none, whole or half-written."""
    return {str(path.relative_to(root)) for name in ("artifacts", "tmp") for path in (root / name).rglob("*.*")}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"generate__num_drawz": 3}, ["generate.num_drawz", "no such field", "did you mean 'num_draws'"]),
        ({"generatee__num_draws": 3}, ["generatee", "no such field", "did you mean 'generate'"]),
        ({"generate__num_draws": 0}, ["generate.num_draws", "greater than or equal to 1", "got 0"]),
        ({"generate__num_draws": "three"}, ["generate.num_draws", "valid integer", "got 'three'"]),
        ({"train__variants": ["kto", "dpo"]}, ["train.variants.1", "'sft', 'kto' or 'mr_align'", "got 'dpo'"]),
        ({"generate__min_segments": 20}, ["generate.min_segments 20 is above generate.max_segments 15"]),
        ({"generate__source": "traces"}, ["generate.traces_path is needed"]),
        ({"questions__train_path": "q.jsonl"}, ["questions.train_path", "no such field", "did you mean 'train_on'"]),
        ({"questions__train": []}, ["questions.train is needed"]),
        ({"model__path": "Qwen/Qwen3-4B"}, ["model.path has no effect when model.source is 'pocket'", "remove it"]),
        ({"model__source": "hub"}, ["question set 'pocket' needs model.source 'pocket'"]),
        ({"name": "My Run"}, ["name", "pattern", "got 'My Run'"]),
    ],
)
def test_a_wrong_config_field_is_named_with_its_limit(mralign, store, fields, says):
    code, _, err = mralign("run", *settings(store, **fields))
    assert code == 2
    assert err.startswith("ConfigError: ")
    assert all(part in err for part in says), err
    assert not store.exists()


def test_all_wrong_fields_are_named_at_once(mralign, store):
    _, _, err = mralign("run", *settings(store, train__beta=-1, evaluate__top_p=2, annotate__modell="x"))
    assert "3 problem(s)" in err
    assert all(name in err for name in ("train.beta", "evaluate.top_p", "annotate.modell"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "pockett"], ["no config 'pockett'", "pocket", "smoke"]),
        (["--set", "seed"], ["--set takes name=value, got 'seed'"]),
        (["--set", "seed.x=1"], ["--set seed.x", "'seed' is not a section"]),
        (["--from-traces", "nowhere.jsonl"], ["nowhere.jsonl", "is not a file", "JSONL"]),
    ],
)
def test_a_wrong_option_is_named(mralign, store, arguments, says):
    code, _, err = mralign("run", *settings(store), *arguments)
    assert code == 2
    assert all(part in err for part in says), err
    assert not artifacts(store)


def test_a_config_file_that_is_no_mapping_is_refused(mralign, tmp_path):
    path = tmp_path / "run.yaml"
    for text, says in (("- a\n- b\n", "must be a mapping of sections"), ("a: [", "is not YAML")):
        path.write_text(text)
        code, _, err = mralign("run", "--config", str(path))
        assert (code, says in err) == (2, True), err


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["task", "train"], ["ablate"]])
def test_a_launch_file_that_is_missing_is_refused_before_anything_is_made(mralign, store, command):
    code, _, err = mralign(*command, *settings(store, train__accelerate_config="nowhere.yaml"))
    assert (code, "train.accelerate_config nowhere.yaml does not exist" in err) == (2, True), err
    assert not artifacts(store)


def test_a_launch_file_of_the_pools_host_is_not_looked_for_here(mralign, store):
    elsewhere = settings(store, train__accelerate_config="nowhere.yaml", train__where="deployment")
    code, _, err = mralign("run", "--dry-run", *elsewhere)
    assert code == 0, err


def test_an_unknown_arm_is_named_with_those_there_are(mralign, store):
    code, _, err = mralign("ablate", "--arms", "kto, mralign", *settings(store))
    assert (code, "unknown arm 'mralign'; there are sft, kto," in err, "(got" in err) == (2, True, False), err


@pytest.mark.parametrize("options", [[], ["--out", "a.csv", "--in", "b.csv"]])
def test_a_judge_sheet_is_written_or_read(mralign, store, options):
    code, _, err = mralign("judge-sheet", *options, *settings(store))
    assert (code, "give --out PATH to write a sheet, or --in PATH to read one" in err) == (2, True), err


def test_a_sheet_is_written_for_whatever_judge(mralign, store):
    code, _, err = mralign("judge-sheet", "--out", "a.csv", "--judge", "exact_match", *settings(store))
    assert (code, "--judge goes with --in; the sheet is the same whoever the judge" in err) == (2, True), err


Q = {"id": 1, "question": "Who wrote Emma?", "answer": "Jane Austen"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (None, ["is not a file or folder"]),
        ([], ["is empty"]),
        (["question: who?\n"], ["line 1", "not JSON"]),
        ([Q, "[1]\n"], ["line 2", "not an object"]),
        ([Q, {**Q, "question": "Who else?"}], ["line 2", "repeats id '1' of line 1"]),
        ([{**Q, "question": "  "}], ["line 1", "'question' must be a non-empty question"]),
        ([{**Q, "answer": []}], ["line 1", "'answer' must be an answer or a list of answers", "got []"]),
        ([{"id": 1, "question": "Who?", "gold": "x"}], ["no field 'answer'", "'gold'", "Set answer_column"]),
        ([{"question": "Who?", "answer": "x"}], ["no field 'id'", "Set id_column"]),
    ],
)
def test_a_wrong_question_file_is_refused_before_anything_starts(mralign, store, tmp_path, rows, says):
    path = tmp_path / "questions.jsonl"
    if rows is not None:
        write_lines(path, rows)
    code, out, err = mralign("run", *settings(store, questions__train={"path": str(path), "id_column": "id"}))
    assert code == 2
    assert err.startswith("DataError: ")
    assert str(path) in err
    assert all(part in err for part in says), err
    assert "flow run" not in out + err
    assert not artifacts(store)


def test_an_evaluation_question_that_is_aligned_on_is_refused(mralign, store, tmp_path):
    train, held_out = (write_lines(tmp_path / f"{name}.jsonl", [Q]) for name in ("train", "eval"))
    code, _, err = mralign("run", *settings(store, questions__train=train, questions__eval=held_out))
    assert code == 2
    assert "1 evaluation question(s) are also questions to align on" in err
    assert not artifacts(store)


def test_question_sets_are_shown_with_what_is_taken_out(mralign, store, tmp_path):
    train = write_lines(tmp_path / "train.jsonl", [Q, {**Q, "question": "Who wrote Ulysses?", "answer": "Joyce"}])
    held_out = write_lines(tmp_path / "eval.jsonl", [{**Q, "question": "who wrote  EMMA"}])
    overlapping = settings(store, questions__train=train, questions__eval=held_out)
    code, out, err = mralign("questions", *overlapping, "--set", "questions.on_overlap=drop")
    assert code == 0, err
    assert "Who wrote Ulysses?" in " ".join(out.replace("│", " ").split())
    assert "taken out train-1 is eval-1: Who wrote Emma?" in out
    assert mralign("questions", *overlapping)[0] == 2
    assert not store.exists()


def test_a_store_that_cannot_be_written_is_named_before_anything_starts(mralign, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = mralign("run", *settings(tmp_path / "file" / "store"))
    assert code == 2
    assert err.startswith("StorageError: storage.root")
    assert "Set storage.root to a folder you can write to" in err


def test_a_store_that_cannot_be_reached_is_named_when_patience_is_over(mralign, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    where = {"root": "s3://bucket/p", "endpoint_url": "http://127.0.0.1:9", "patience_s": 1}
    options = [f"--set=storage.{name}={value}" for name, value in where.items()]
    code, _, err = mralign("run", *settings(Path("s3:/")), *options)
    assert code == 2
    assert "StoreUnavailableError" in err and "Traceback" not in err
    assert "s3://bucket/p at http://127.0.0.1:9" in err
    assert "check storage.endpoint_url and that its server is up" in err


@pytest.mark.parametrize(("stage", "needs"), [("generate", "questions"), ("reward", "candidates")])
def test_a_stage_whose_inputs_were_never_made_says_what_to_run_first(mralign, store, stage, needs):
    code, _, err = mralign("task", stage, *settings(store))
    assert code == 2
    assert f"has made '{needs}' yet: run stage" in err


def test_a_shard_that_does_not_exist_is_refused(mralign, store_root):
    inputs = named_inputs(small_config(store_root), "questions", "model")
    code, _, err = mralign("task", "generate", "--shard", "99", *settings(store_root), *inputs)
    assert (code, "--shard 99: there are 4 shards, numbered from 0" in err) == (2, True), err


def named_inputs(config, *names: str) -> list[str]:
    """``--input`` options for the only artifact of each kind in a store."""
    keys = {name: os.listdir(Path(config.storage.root, "artifacts", name))[0] for name in names}
    return [f"--input={name}={name}/{key[:8]}" for name, key in keys.items()]


def test_the_task_of_a_stage_runs_here_and_says_what_it_made(mralign, store_root):
    inputs = named_inputs(small_config(store_root), "questions", "model")
    options = settings(store_root, generate__num_draws=1, generate__shard_size=5)
    code, out, err = mralign("task", "generate", "--shard", "66", *options, *inputs)
    assert code == 0, err
    made = json.loads(out)
    assert (made["stage"], made["rows"]) == ("generations-shard", 10)
    code, out, _ = mralign("lineage", f"generations-shard/{made['key'][:8]}", *settings(store_root))
    assert code == 0
    assert "generations-shard" in out and "questions" in out and "model" in out


def test_a_dry_run_starts_nothing(mralign, store_root):
    before = artifacts(store_root)
    code, out, _ = mralign("run", "--dry-run", *settings(store_root), "--set", "train.trace_logps=true")
    assert code == 0
    assert "model" in out and "cached" in out and "to compute" in out
    assert "train.trace_logps: one forward pass over" in out and "ablate.arms" not in out
    assert artifacts(store_root) == before
    arms = ["--set", "ablate.arms=[mr_align, backbone_llama]"]
    code, out, _ = mralign("run", "--dry-run", *settings(store_root), *arms)
    assert code == 0 and "have 2 models or files of traces, and annotate.budget_usd" in " ".join(out.split())


@pytest.mark.parametrize(
    ("text", "says"),
    [("nothing", ["no artifact fits 'nothing'", "candidates"]), ("questions/", ["2 artifacts fit 'questions/'"])],
)
def test_lineage_of_an_unknown_artifact_lists_those_there_are(mralign, store, text, says):
    for seed in (0, 1):
        load_questions.run_here(small_config(store, model__pocket__world_seed=seed))
    code, _, err = mralign("lineage", text, *settings(store))
    assert code == 2
    assert all(part in err for part in says), err


def trace(number: int, *, right: bool, **fields: object) -> dict[str, object]:
    row = {"id": f"t{number}", "question": f"Question {number}?", "gold": "Puville", "thinking": THINKING}
    return {**row, "answer": "Puville" if right else "Drihaven", **fields}


BOTH = [trace(0, right=True), trace(1, right=False)]


@pytest.mark.server
@pytest.mark.usefixtures("prefect_api")
class TestOnAServer:
    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ([*BOTH, trace(2, right=True, thinking="<think> half")], ["line 3", "must not hold '<think>'"]),
            ([*BOTH, trace(0, right=True)], ["line 3", "repeats id 't0'"]),
            ([{"id": "t0", "question": "Who?", "gold": "x", "answer": "x"}], ["line 1", "'thinking' must be text"]),
            ([trace(0, right=True), trace(1, right=False, finished=False)], ["1 unclosed thinking", "0 negative"]),
            ([trace(0, right=True), trace(1, right=False, thinking="")], ["1 no thinking", "0 negative"]),
            ([trace(0, right=True), trace(1, right=False, thinking="It.")], ["1 fewer than 2 segments", "0 negative"]),
            ([trace(n, right=True) for n in range(3)], ["3 positive, 0 negative", "both kinds are needed", "3 traces"]),
        ],
    )
    def test_wrong_traces_are_refused_with_their_yield(self, mralign, store_root, tmp_path, rows, says):
        path = write_lines(tmp_path / "traces.jsonl", rows)
        before = artifacts(store_root)
        family = tmp_path / "pocket.yaml"
        family.write_text(POCKET_FAMILY)
        bounds = {"generate__min_reasoning_tokens": 0, "generate__min_segments": 2, "model__family": str(family)}
        code, _, err = mralign("run", "--from-traces", path, *settings(store_root, **bounds))
        message = last_message(err)
        assert code == 2
        assert message.startswith(("DataError: ", "NoCandidatesError: "))
        assert all(part in message for part in says), message
        assert not [name for name in artifacts(store_root) - before if "questions" not in name]

    def test_no_candidates_at_all_shows_the_yield_of_each_step(self, mralign, store_root):
        few = {
            "questions__train": {"name": "pocket", "limit": 6},
            "generate__num_draws": 1,
            "generate__min_reasoning_tokens": 170,
        }
        code, _, err = mralign("run", *settings(store_root, **few))
        message = last_message(err)
        assert code == 2
        assert "selection kept 0 positive, 0 negative traces" in message
        for step in ("6 questions", "questions with a polarity", "0 draws of allowed length", "What can help"):
            assert step in message, message
        assert not (store_root / "artifacts" / "candidates").exists()

    def test_a_lora_target_that_matches_nothing_is_refused_before_sampling(self, mralign, store_root):
        code, _, err = mralign("run", *settings(store_root, train__target_modules="q_proj,qkv"))
        message = last_message(err)
        assert code == 2
        assert "train.target_modules" in message
        assert "no linear module 'qkv'; it has down_proj" in message
        assert not (store_root / "artifacts" / "generations-shard").exists()

    def test_a_missing_artifact_is_named_with_the_stage_to_run(self, mralign, store_root):
        config = small_config(store_root)
        assert mralign("run", "--only", "prepare", *settings(store_root))[0] == 0
        shutil.rmtree(store_root / "artifacts" / "model")
        code, _, err = mralign("run", "--only", "generate", *settings(store_root))
        message = last_message(err)
        assert code == 2
        assert message.startswith("ArtifactError: ")
        assert "artifacts/model/" in message and "never finished, or removed" in message
        assert ArtifactStore(config.storage).root_uri in message

    def test_a_mistake_is_one_message_and_no_traceback(self, mralign, store_root):
        _, out, err = mralign("run", *settings(store_root, train__target_modules="qkv"))
        assert "Traceback" not in out + err


@pytest.mark.parametrize(("policy", "of_draws"), [("auto", "auto"), ("failed", "auto"), ("never", "never")])
def test_ask_again_is_for_draws_too_where_a_server_samples(policy, of_draws):
    server = {
        "generate.sampler": "endpoint",
        "generate.endpoint": {"model": "hosted_vllm/m", "api_base": "http://h/v1"},
    }
    settings = asking_again(read_config("pocket", server), policy)
    assert (settings.annotate.ask_again, settings.generate.ask_again) == (policy, of_draws)
    local = read_config("pocket")
    assert asking_again(local, policy).generate == local.generate


def last_message(err: str) -> str:
    """The message that the command ends with, behind what Prefect logs."""
    lines = err.splitlines()
    first = max(number for number, line in enumerate(lines) if line.partition(":")[0].endswith("Error"))
    return "\n".join(lines[first:])


@pytest.mark.parametrize("command", [["run"], ["retrain"]])
def test_prefect_is_imported_when_its_server_is_known(tmp_path, command):
    """Imported before, it would start a server of its own, in the process whose end it is to be told."""
    script = (
        "import sys, contextlib\n"
        "from flows.commands import cli\n"
        "def use_server():\n"
        "    sys.exit('early' if 'prefect' in sys.modules else 'in time')\n"
        "cli.use_server = use_server\n"
        f"cli.app({[*command, '--config', 'pocket', f'--set=storage.root={tmp_path}']!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr.strip().endswith("in time"), done.stderr[-2000:]


def test_prefect_that_was_imported_early_is_told_its_server():
    script = (
        "import os, prefect\n"
        "from flows.commands.server import _tell_prefect\n"
        "os.environ['PREFECT_API_URL'] = 'http://127.0.0.1:9/api'\n"
        "_tell_prefect()\n"
        "print(prefect.settings.PREFECT_API_URL.value())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "http://127.0.0.1:9/api"

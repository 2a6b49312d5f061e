"""Draws that a server fails to make: neither right nor wrong, asked for again by the next run, and nothing else is."""

import json
from collections import Counter

import pytest
from chat_server import ChatServer, fails, says, thinks

from mralign_core.config import RunConfig
from mralign_core.errors import UserError
from mralign_core.storage import LEFT_OUT, TO_ASK_AGAIN, ArtifactStore
from tasks.engine.plan import plan
from tasks.generate import FUNNEL, collect_generations, select_candidates
from tasks.prepare import load_questions, prepare_model
from tests.core.generation.random_models import build_bpe, build_model
from tests.stages import draw

NUM_QUESTIONS = 12
DRAWS = ("sequential", "exhaustive")


class Quiz(ChatServer):
    """Thinking makes it right on even questions and wrong on odd ones; ``broken`` is what is said in place of that."""

    def __init__(self):
        super().__init__()
        self.broken, self.script = {}, self.answer

    def answer(self, request, number):
        question, mode = asked(request)
        if turn := self.broken.get((question, mode)):
            return turn
        is_right = (mode == "on") == (question % 2 == 0)
        answer = f"<answer>{f'Town {question}' if is_right else 'Atlantis'}</answer>"
        return thinks(f"I recall it.\n\nSo question {question} is clear.", answer) if mode == "on" else says(answer)


def asked(request):
    """The number of the question and the thinking mode of a request."""
    content = request["messages"][-1]["content"]
    is_on = request["chat_template_kwargs"]["enable_thinking"]
    return int(content.rpartition("country ")[2].partition("?")[0]), "on" if is_on else "off"


@pytest.fixture
def server():
    server = Quiz()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_bpe()
    build_model("qwen3", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=DRAWS)
def config(request, server, model_folder, tmp_path):
    rows = [{"question": f"Seat of country {n}?", "answer": f"Town {n}"} for n in range(NUM_QUESTIONS)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    priced = {"input_usd_per_million": 0, "output_usd_per_million": 1}
    endpoint = {"model": "openai/m", "api_base": server.url, "max_attempts": 1, **priced}
    return RunConfig.model_validate(
        {
            "storage": {"root": str(tmp_path / "store")},
            "model": {"path": str(model_folder), "device": "cpu"},
            "questions": {"train": str(tmp_path / "asked.jsonl")},
            "generate": {
                "sampler": "endpoint",
                "endpoint": endpoint,
                "concurrency": 1,
                "num_draws": 2,
                "draws": request.param,
                "shard_size": 6,
                "min_segments": 1,
                "min_reasoning_tokens": 1,
            },
        }
    )


def changed(config, section, **fields):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=fields)})


@pytest.fixture
def run(next_run):
    """Makes a run of the stage in a process of its own: its draws and candidates."""

    def start(config):
        next_run()
        return in_this_run(config)

    return start


def in_this_run(config):
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    generations = draw(config, questions, model)
    return generations, select_candidates.run_here(config, questions, model, generations)


def look(config, generations, candidates):
    """What to ask again, failed draws, questions that are dropped for them, and questions with traces."""
    store = ArtifactStore(config.storage)
    counts = store.manifest(generations).counts
    draws = store.read_table(generations, "generations.parquet")
    failed = draws[draws["outcome"] == "failed"]
    assert failed["em_answer"].isna().all() and counts.get(LEFT_OUT, 0) == counts.get(TO_ASK_AGAIN, 0) == len(failed)
    funnel = json.loads(store.open_file(candidates, FUNNEL).read_text())
    dropped = sum(row["dropped"] for row in funnel if row["reason"] == "a draw failed")
    kept = store.read_table(candidates, "candidates.parquet")["question"]
    return len(failed), dropped, sorted(int(text.split()[-1].strip("?")) for text in kept)


def requests_since(server, sent):
    return Counter(asked(request) for request in server.requests[sent:])


def test_a_failed_draw_decides_nothing_and_only_it_is_asked_again(server, config, run, tmp_path):
    is_exhaustive = config.generate.draws == "exhaustive"
    server.broken = {(8, "on"): fails(500), (9, "off"): fails(400, "The decoder prompt (length 17772) is odd")}
    first = run(config)
    num_failed = 4 if is_exhaustive else 2
    others = [n for n in range(NUM_QUESTIONS) if n not in (8, 9)]
    assert look(config, *first) == (num_failed, 2, others)

    sent = len(server.requests)
    assert in_this_run(config) == first and len(server.requests) == sent  # such as after a retry of a task

    server.broken = {}
    repaired = run(config)
    assert look(config, *repaired) == (0, 0, list(range(NUM_QUESTIONS)))
    rest = {(8, "on"): 2, (9, "off"): 2} | ({} if is_exhaustive else {(9, "on"): 2})
    assert requests_since(server, sent) == rest
    sent = len(server.requests)
    assert run(config) == repaired and len(server.requests) == sent

    twin = changed(config, "storage", root=str(tmp_path / "twin"))
    untroubled = run(twin)
    assert [ref.key for ref in untroubled] == [ref.key for ref in repaired]
    assert [ref.sha256 for ref in untroubled] == [ref.sha256 for ref in repaired]


def test_a_server_that_stays_broken_changes_no_digest(server, config, run):
    server.broken = {(8, "on"): fails(500)}
    first = run(config)
    sent = len(server.requests)
    assert run(config) == first
    assert set(requests_since(server, sent)) == {(8, "on")}
    sent = len(server.requests)
    assert run(changed(config, "generate", ask_again="never")) == first and len(server.requests) == sent


def test_what_fails_decides_less_and_less(server, config, run):
    """Of two failures one is repaired: the better artifact is found from then on."""
    server.broken = {(8, "on"): fails(500), (11, "off"): fails(500)}
    run(config)
    del server.broken[11, "off"]
    better = run(config)
    assert look(config, *better)[1:] == (1, [n for n in range(NUM_QUESTIONS) if n != 8])
    questions, model = load_questions.run_here(config), prepare_model.run_here(config)
    assert collect_generations.work(config, questions, model).find(ArtifactStore(config.storage)) == better[0]


def test_a_refusal_is_an_answer_that_is_finished(server, config, run):
    server.broken = {(8, "on"): fails(400, "content_filter: flagged")}
    first = run(config)
    assert look(config, *first) == (0, 0, [n for n in range(NUM_QUESTIONS) if n != 8])
    sent = len(server.requests)
    server.broken = {}
    assert run(config) == first and len(server.requests) == sent


def test_a_server_that_answers_nothing_stops_the_stage_and_the_next_run_goes_on(server, config, run):
    server.script = lambda request, number: fails(400, "I am a teapot")
    with pytest.raises(UserError, match="I am a teapot"):
        run(config)
    assert len(server.requests) <= config.generate.endpoint.stop_after_failures
    server.script = server.answer
    assert look(config, *run(config)) == (0, 0, list(range(NUM_QUESTIONS)))


def test_a_dry_run_says_how_many_draws_are_asked_again(server, config, run):
    server.broken = {(8, "on"): fails(500)}
    run(config)
    status = {each.name: each.status for each in plan(config).everything if each.stage == "generate"}
    again = f"{2 if config.generate.draws == 'exhaustive' else 1} draw(s) to ask again"
    assert status == {
        "generations-shard 6 rows": "cached",
        "generations-shard 6–12": again,
        "generations": again,
        "candidates": "to compute after its inputs",
    }

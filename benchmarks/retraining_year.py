"""A year of retrainings in the pocket world, week by week: ``python -m benchmarks.retraining_year --folder DIR``.

Questions arrive every fourth week, in week 20 many at once. The annotators' server labels at random in weeks 20 to 23;
in week 24 the config names mended annotators by another name, as what the bad ones said is kept. In week 30 comes a
poisoned batch: its gold answers are those of the similar entity, which thinking by analogy ends in; it is taken away a
week later. In week 40 the server is away. Each week is a run of flow ``weekly-retrain`` on what lies there. Only weeks
with news compare, so the gate's error is shared among 16 comparisons and not 52. Prints the weeks as a table, draws
them, and says what a collection of the store would remove. ``--seaweedfs`` keeps the store in a bucket of a SeaweedFS
server that it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flows.commands.server import use_server
from mralign_core.annotation.cue import Noise, cue_reply
from mralign_core.annotation.prompts import read_payload
from mralign_core.config import RetentionConfig, RunConfig, load_config, overridden
from mralign_core.errors import UserError
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.pocket.world import build_world
from mralign_core.reporting.style import styled, to_png
from mralign_core.retention.collect import Collector
from mralign_core.retraining.spending import paid_by_month_usd
from mralign_core.storage import ArtifactStore
from mralign_core.versions.aliases import Aliases
from mralign_core.versions.version import Version, read_versions, resolve_version
from tasks.engine.graph import shard_kinds

POCKET = Path(__file__).resolve().parents[1] / "deployments" / "configs" / "pocket.yaml"
EVERY = 4
"""Weeks between arrivals."""
FIRST, MANY, POISONED = 120, 50, 60
"""Questions that are there in week 0, come in the first week of random labels, and have wrong gold answers."""
RANDOM_LABELS, POISON_WEEK, OUTAGE_WEEK = range(20, 24), 30, 40
ROLES = {"annotator_a": "a", "annotator_b": "b", "adjudicator": "adjudicator"}


class Week(NamedTuple):
    """What one week came to."""

    week: int
    questions: int
    outcome: str
    champion: str
    mis: float
    challenger_mis: float
    requests: int
    dollars: float
    store_mb: float
    seconds: float
    why: str


class AnnotatorServer:
    """Annotators behind the OpenAI protocol: the offline ones' labels, or labels at random, or nothing at all."""

    def __init__(self) -> None:
        self.labels_at_random = self.is_away = False
        self.num_requests = 0
        lock, rng, owner = threading.Lock(), np.random.default_rng(0), self
        noise = Noise(PAPER_TAXONOMY.labels, 0, 0.05, 0.05)

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if owner.is_away:
                    self.send_error(503)
                    return
                with lock:
                    owner.num_requests += 1
                    random = owner.labels_at_random and _random_reply(request, rng)
                text = random or cue_reply(request["model"].rpartition("-")[2], request["messages"], noise)
                message = {"role": "assistant", "content": text}
                usage = {"prompt_tokens": len(json.dumps(request)) // 4, "completion_tokens": len(text) // 4}
                body = json.dumps(
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 1,
                        "model": request["model"],
                        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                        "usage": {**usage, "total_tokens": sum(usage.values())},
                    }
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"


def _random_reply(request: dict[str, Any], rng: np.random.Generator) -> str:
    payload = read_payload(request["messages"])
    spans = [step["thinking_step"] for step in payload.get("disputed", [])] or [
        [segment["index"]] for segment in payload["segments"]
    ]
    steps = [
        {"thinking_step": span, "labels": [{"label": str(rng.choice(PAPER_TAXONOMY.labels)), "confidence": 8}]}
        for span in spans
    ]
    return json.dumps({"steps": steps, "overall_confidence": 8})


class Year:
    """The files that arrive, and the config that every week runs with.

    Args:
        folder: for the files.
        server: the annotators.
        num_weeks: how many there will be.
        overrides: fields of the config, by their dotted names; where the store is among them.
    """

    def __init__(self, folder: Path, server: AnnotatorServer, num_weeks: int, overrides: dict[str, Any]) -> None:
        self.server = server
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True)
        world = build_world(0)
        frame = world.questions_frame()
        rows = frame[frame["split"] == "train"].sample(frac=1, random_state=0).to_dict("records")
        by_analogy = {one.question_id: world.neighbour_fact(one.facts[-1]).value for one in world.questions}
        wrong = [row for row in rows if by_analogy[row["question_id"]] not in row["answers"]][:POISONED]
        self._poison = [{**row, "answers": [by_analogy[row["question_id"]]]} for row in wrong]
        poisoned = {row["question_id"] for row in wrong}
        rows = [row for row in rows if row["question_id"] not in poisoned]
        self._arrive(0, rows[:FIRST])
        few = [week for week in range(EVERY, num_weeks, EVERY) if week != RANDOM_LABELS[0]]
        parts = np.array_split(np.array(rows[FIRST + MANY :], object), max(len(few), 1))
        self._later = {RANDOM_LABELS[0]: rows[FIRST : FIRST + MANY], **dict(zip(few, parts, strict=False))}
        arrived = {"name": "arrived", "path": str(self._incoming / "*.jsonl"), "stratum_column": "stratum"}
        self.config = load_config(
            POCKET,
            {
                "name": "year",
                "questions.train": [arrived],
                "train.variants": ["mr_align"],
                "train.report_to": "none",
                "evaluate.num_draws": 10,
                "retrain.gate.comparisons": 16,
                **self._annotators("cue"),
                **overrides,
            },
        )

    def _annotators(self, called: str) -> dict[str, Any]:
        """Fields of the config that name the annotators."""
        endpoint = {
            "api_base": self.server.url,
            "input_usd_per_million": 1.0,
            "output_usd_per_million": 4.0,
            "max_attempts": 2,
        }
        return {f"annotate.{role}": {"model": f"openai/{called}-{name}", **endpoint} for role, name in ROLES.items()}

    def _arrive(self, week: int, rows: Any) -> None:
        lines = [
            json.dumps({"question": row["question"], "answer": row["answers"][0], "stratum": row["stratum"]})
            for row in rows
        ]
        (self._incoming / f"week-{week:02}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def begin(self, week: int) -> None:
        """What happens before the run of a week."""
        if week in self._later:
            self._arrive(week, self._later[week])
        if week == POISON_WEEK:
            self._arrive(week, self._poison)
        elif week == POISON_WEEK + 1:
            (self._incoming / f"week-{POISON_WEEK}.jsonl").unlink()
        if week == RANDOM_LABELS.stop:
            self.config = overridden(self.config, self._annotators("mended"))
        self.server.labels_at_random = week in RANDOM_LABELS
        self.server.is_away = week == OUTAGE_WEEK

    def num_questions(self) -> int:
        """Questions that lie there."""
        return sum(len(path.read_text().splitlines()) for path in self._incoming.glob("*.jsonl"))


def run_weeks(folder: Path, num_weeks: int, overrides: dict[str, Any]) -> Iterator[Week]:
    """Run the weeks one after another, in this process, and tell each."""
    from flows.weekly_retrain import weekly_retrain

    year = Year(folder, AnnotatorServer(), num_weeks, overrides)
    store = ArtifactStore(year.config.storage)
    for week in range(num_weeks):
        year.begin(week)
        asked, paid, began = year.server.num_requests, paid_by_month_usd(store).total(), time.monotonic()
        try:
            line = weekly_retrain(year.config)
        except (UserError, EndpointUnavailableError, OSError) as error:
            line = f"failed: {type(error).__name__}: {error}"
        outcome, _, why = line.partition(": ")
        champion, mis, challenger_mis = _models(year.config, store)
        size = sum(store.files.sizes("").values())
        yield Week(
            week,
            year.num_questions(),
            outcome,
            champion,
            mis,
            challenger_mis,
            year.server.num_requests - asked,
            paid_by_month_usd(store).total() - paid,
            size / 2**20,
            time.monotonic() - began,
            why,
        )


def _models(config: RunConfig, store: ArtifactStore) -> tuple[str, float, float]:
    """The champion, its Mis in percent on the held-out questions, and that of the newest version.

    Before there is a champion, its Mis is the base model's.
    """
    newest = read_versions(store)[0]
    if Aliases(store).current(config.retrain.alias) is None:
        return "–", _mis(newest, "on"), _mis(newest, newest.record.variant)
    champion = resolve_version(store, config.retrain.alias)
    return champion.name, _mis(champion, champion.record.variant), _mis(newest, newest.record.variant)


def _mis(version: Version, variant: str) -> float:
    (row,) = [row for row in version.record.scores if (row["variant"], row["stratum"]) == (variant, "(all)")]
    return float(100 * row["mis"])


@styled
def draw_year(weeks: pd.DataFrame) -> Figure:
    """The champion's Mis, requests and the store, by week."""
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    panels[0].step(weeks["week"], weeks["mis"], where="post", label="champion, first the base model")
    panels[0].set_ylabel("Mis, %")
    for name, mark in (("promoted", "^"), ("held", "o"), ("rejected", "x")):
        of_kind = weeks[weeks["outcome"] == name]
        panels[0].scatter(of_kind["week"], of_kind["challenger_mis"], marker=mark, s=28, label=name, zorder=2)
    panels[0].legend(frameon=False, ncols=4, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))
    panels[1].bar(weeks["week"], weeks["requests"])
    panels[1].set_ylabel("requests")
    panels[2].step(weeks["week"], weeks["store_mb"], where="post")
    panels[2].set_ylabel("store, MB")
    panels[2].set_xlabel("week")
    return figure


def main() -> None:
    """Run the year, print it as Markdown and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=52)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the store and the files")
    parser.add_argument("--seaweedfs", action="store_true", help="the store in a bucket of a server that this starts")
    given = parser.parse_args()
    if given.folder.exists() and any(given.folder.iterdir()):
        sys.exit(f"{given.folder} is not empty: name a new folder")
    os.environ.setdefault("OPENAI_API_KEY", "none")
    logging.getLogger("prefect").setLevel(logging.ERROR)
    weeks: list[Week] = []
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(_bucket(given.folder) if given.seaweedfs else _folder(given.folder))
        stack.enter_context(use_server())
        overrides = {**storage, **dict(one.split("=", 1) for one in given.set)}
        print("| week | questions | outcome | champion | its Mis | challenger's | requests | $ | store, MB | s | why |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for one in run_weeks(given.folder, given.weeks, overrides):
            weeks.append(one)
            why = one.why.replace("|", "/").replace("\n", " ")[:160]
            print(
                f"| {one.week} | {one.questions} | {one.outcome} | {one.champion} | {one.mis:.1f} | "
                f"{one.challenger_mis:.1f} | {one.requests} | "
                f"{one.dollars:.3f} | {one.store_mb:.1f} | {one.seconds:.0f} | {why} |",
                flush=True,
            )
        frame = pd.DataFrame(weeks)
        _tell_of_all(frame, ArtifactStore(load_config(POCKET, overrides).storage))
    frame.to_csv(given.folder / "weeks.csv", index=False)
    picture = given.folder / "year.png"
    picture.write_bytes(to_png(draw_year(frame)))
    print(picture)


def _tell_of_all(weeks: pd.DataFrame, store: ArtifactStore) -> None:
    outcomes = weeks["outcome"].value_counts().to_dict()
    print(f"\n{outcomes}; {weeks['requests'].sum()} requests, {weeks['dollars'].sum():.2f} dollars")
    policy = RetentionConfig(runs=1, days=0, grace_hours=0, unnamed_versions=1)
    going = sum(one.num_bytes for one in Collector(store, policy, shard_kinds()).plan().going)
    print(f"a collection that keeps one run and one version besides the champion frees {going / 2**20:.1f} MB of "
          f"{weeks['store_mb'].iloc[-1]:.1f}")  # fmt: skip


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[dict[str, Any]]:
    """The fields of a config whose store is a folder in this one."""
    yield {"storage.root": str(folder / "store")}


@contextlib.contextmanager
def _bucket(folder: Path) -> Iterator[dict[str, Any]]:
    """The fields of a config whose store is a bucket of a server that keeps its files in this folder."""
    from tests.seaweedfs import BUCKET, running_server

    (folder / "seaweedfs").mkdir(parents=True)
    with running_server(folder / "seaweedfs") as server:
        os.environ.update(server.environment())
        yield {"storage.root": f"s3://{BUCKET}/store", "storage.endpoint_url": server.endpoint_url}


if __name__ == "__main__":
    main()

"""How near annotation comes to the ideal time, and how much memory it needs.

A local endpoint answers every request after a fixed latency, in a process of its own. The ideal time is requests ×
latency ÷ concurrency. Measured in one run, on the same requests: the stage as the flow runs it (its task bodies,
two shards at once, kept replies, ledger, artifacts), and a bare asyncio loop that posts the same bodies with httpx
and throws the replies away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from flows.fan_out import missing_shards
from mralign_core.annotation.prompts import read_payload
from mralign_core.config import RunConfig
from mralign_core.schemas.candidates import CANDIDATES
from mralign_core.storage import ArtifactRef, ArtifactStore
from mralign_core.storage.tables import TableWriter
from tasks.annotate import SHARDS_AT_ONCE, annotate_shard, collect_annotations
from tasks.engine.session import session

SENTENCE = "I recall that the river was named after the city and the company moved its seat there"
ADJUDICATED_SHARE = 5
"""One trace of so many has its annotators differ."""


def reply_to(request: dict[str, Any]) -> dict[str, Any]:
    """A valid labelling; annotators differ on one trace of ``ADJUDICATED_SHARE``."""
    payload = read_payload(request["messages"])
    is_disputed = int(payload["question"].split()[-1]) % ADJUDICATED_SHARE == 0
    label = "framing" if is_disputed and request["model"] == "a" else "retrieval"
    asked = [step["thinking_step"] for step in payload.get("disputed", [])]
    steps = asked or [[segment["index"]] for segment in payload["segments"]]
    labelled = [{"thinking_step": step, "labels": [{"label": label, "confidence": 6}]} for step in steps]
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": json.dumps({"steps": labelled, "overall_confidence": 8})},
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300},
    }


def serve(latency_s: float, port: Any) -> None:
    """Answer forever; the port is told through a queue."""

    async def answer(request: web.Request) -> web.Response:
        arrived = time.monotonic()
        reply = reply_to(await request.json())
        await asyncio.sleep(max(0.0, latency_s - (time.monotonic() - arrived)))
        return web.json_response(reply)

    async def main() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.put(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


def candidate(number: int, num_segments: int, words: int) -> dict[str, Any]:
    """A trace of the paper's size: ten segments of some fifty words."""
    text, segments, sentence = "", [], SENTENCE.split()
    for place in range(num_segments):
        start = len(text)
        text += " ".join(sentence[(number + place + i) % len(sentence)] for i in range(words))
        segments.append({"start": start, "end": len(text), "token_start": place, "token_end": place + 1})
        text += "\n\n"
    return {
        "trace_id": f"trace-{number}",
        "question_id": f"question-{number}",
        "question": f"Which river is number {number}",
        "answers": ["Tiber"],
        "stratum": "",
        "polarity": "negative" if number % 2 else "positive",
        "draw": 0,
        "prompt": "",
        "completion": text,
        "prompt_ids": [1],
        "completion_ids": list(range(num_segments)),
        "end_token_id": None,
        "answer": "Tiber",
        "segments": segments,
        "reasoning_tokens": num_segments * words,
    }


def publish(store: ArtifactStore, folder: Path, options: argparse.Namespace) -> ArtifactRef:
    """Write the candidates piece by piece."""
    import pandas as pd

    folder.mkdir()
    with TableWriter(folder / "candidates.parquet", CANDIDATES) as writer:
        for first in range(0, options.traces, 2000):
            numbers = range(first, min(first + 2000, options.traces))
            writer.add(pd.DataFrame([candidate(n, options.segments, options.words) for n in numbers]))
    return store.publish("candidates", "benchmark", folder, parents=[], fingerprint={}, table="candidates")


def run_stage(config: RunConfig, candidates: ArtifactRef) -> tuple[ArtifactRef, float]:
    """The stage's task bodies, as the flow runs them; the artifact, and the wall time in seconds."""
    started = time.perf_counter()
    with session(), ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        shards = missing_shards(collect_annotations.work(config, candidates))
        list(threads.map(lambda rows: annotate_shard.run_here(config, candidates, rows), shards))
        annotations = collect_annotations.run_here(config, candidates)
    return annotations, time.perf_counter() - started


async def bare_loop(url: str, bodies: list[bytes], concurrency: int) -> float:
    """Post the bodies, so many at a time; wall time in seconds."""
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    queue = iter(bodies)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def worker() -> None:
            for body in queue:
                (await client.post(f"{url}/chat/completions", content=body)).raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*[worker() for _ in range(concurrency)])
        return time.perf_counter() - started


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--traces", type=int, default=1000)
    parser.add_argument("--segments", type=int, default=10, help="segments of a trace")
    parser.add_argument("--words", type=int, default=50, help="words of a segment")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds the endpoint takes to answer")
    parser.add_argument("--shard-size", type=int, default=128)
    parser.add_argument("--without-bare-loop", action="store_true", help="measure the stage alone")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    server = context.Process(target=serve, args=(options.latency, port), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/v1"
    with tempfile.TemporaryDirectory() as scratch:
        free = {"api_base": url, "input_usd_per_million": 0, "output_usd_per_million": 0}
        models = {"annotator_a": "openai/a", "annotator_b": "openai/b", "adjudicator": "openai/judge"}
        annotate: dict[str, Any] = {role: {"model": model, **free} for role, model in models.items()}
        config = RunConfig.model_validate(
            {
                "storage": {"root": str(Path(scratch, "store"))},
                "questions": {"train": "nq_open"},
                "annotate": {**annotate, "concurrency": options.concurrency, "shard_size": options.shard_size},
            }
        )
        store = ArtifactStore(config.storage)
        candidates = publish(store, Path(scratch, "candidates"), options)
        import mralign_core.llm.endpoint  # noqa: F401  (litellm takes seconds to import, once a process; not timed)

        before_mb = peak_mb()
        annotations, seconds = run_stage(config, candidates)
        after_mb = peak_mb()
        num_requests = store.manifest(annotations).files["raw_annotations.parquet"].rows or 0
        ideal = num_requests * options.latency / options.concurrency
        report = [("stage", seconds)]
        if not options.without_bare_loop:
            body = json.dumps({"model": "a", "messages": sample_messages(config, store, candidates)}).encode()
            report.append(("bare loop", asyncio.run(bare_loop(url, [body] * num_requests, options.concurrency))))
        server.terminate()
    print(f"{options.traces} traces, {num_requests} requests, {options.latency} s each, {options.concurrency} at once")
    print(f"ideal      {ideal:8.1f} s")
    for name, value in report:
        over = f"{100 * (value / ideal - 1):+.1f} % over ideal" if ideal else ""
        print(f"{name:<10} {value:8.1f} s   {over}")
    print(f"stage: {num_requests / seconds:.0f} requests a second")
    print(f"peak memory: before the stage {before_mb:.0f} MB, after it {after_mb:.0f} MB")


def sample_messages(config: RunConfig, store: ArtifactStore, candidates: ArtifactRef) -> list[Any]:
    """The messages of one annotator's request."""
    from mralign_core.annotation.annotate import trace_of
    from mralign_core.annotation.prompts import annotate_messages
    from mralign_core.label_sets import load_label_set
    from mralign_core.method.taxonomy import MAX_LABELS

    row = next(store.read_rows(candidates, "candidates.parquet", 0, 1).itertuples(index=False))
    taxonomy = load_label_set(config.annotate.label_set).taxonomy
    return list(annotate_messages(trace_of(row), max_labels=MAX_LABELS, taxonomy=taxonomy))


if __name__ == "__main__":
    main()

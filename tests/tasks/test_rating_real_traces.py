"""People rate real traces: import, round and ratings over HTTP, sheet, kappa, human/NAME, and a run that uses it."""

import json
from pathlib import Path
from types import SimpleNamespace

import httpx
from test_real_traces import REAL_DATA, config_of, imported, pytestmark  # noqa: F401 (skips without the data)

from mralign_core.comparison.sheets import read_sheet
from mralign_core.config import overridden
from mralign_core.method.taxonomy import PAPER_TAXONOMY
from mralign_core.reporting.server_paths import VIEW_API_PREFIX
from mralign_core.storage import ArtifactStore, RunRecords
from mralign_core.workbench.app import make_app
from tests.asgi_server import in_a_loop_of_its_own
from tests.stages import label

RUN = "5e1f0000-0000-4000-8000-000000000002"
HARD = {
    "latex": "By definition \\(a_1 = \\frac{1}{2}\\), so $$\\sum_{i=1}^{n} i = n(n+1)/2$$ & <b>not</b> `code`.",
    "right to left": "התשובה היא ירושלים, כך אני זוכר. \u202eأظن أن الجواب هو القاهرة\u202c.",
    "chinese": "我记得答案是东京。日本的首都是东京，所以答案应该是东京。" * 40,
    "control characters": "It was\u200b 1988\u0007,\u001b[31m I think\u0085 so\ufeff \U0001f600.",
    "a formula": '=HYPERLINK("http://x.example","1988")',
    "one long word": "Donaudampfschifffahrt" * 300,
}
"""What a segment may hold, each made a segment of a real trace."""


def real_lines(num: int) -> list[str]:
    """Real traces, some with another alphabet, and hard segments put into the first of them."""
    lines: list[str] = []
    for number, line in enumerate(Path(REAL_DATA, "traces/race_nq_ds7b_samples.jsonl").read_text().splitlines()):
        row = json.loads(line)
        is_foreign = any("\u4e00" <= letter <= "\u9fff" for letter in row["thinking"])
        if row["finished"] and (number < num or is_foreign):
            polarity = "positive" if number % 2 else "negative"
            hard = list(HARD.values())[len(lines)] if len(lines) < len(HARD) else ""
            thinking = f"{row['thinking']}\n\n{hard}" if hard else row["thinking"]
            row |= {"id": f"real-{number}", "polarity": polarity, "thinking": thinking}
            lines.append(json.dumps(row))
    return lines


class Rater:
    """A person's page, scripted."""

    def __init__(self, root, name):
        self.app, self.about, self.name = make_app(), {"store": root, "run": "real"}, name

    def ask(self, method, path, body=None, **query):
        async def asked():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                address = f"{VIEW_API_PREFIX}rate/{path}"
                return await client.request(method, address, params={**self.about, **query}, json=body)

        reply = in_a_loop_of_its_own(asked)
        assert reply.status_code == 200, reply.text
        return reply

    def rate_all(self, saying):
        """Begin a round of all traces and go through it; gives its name and items."""
        choice = {"num": 500, "by": "random"}
        name = self.ask("POST", "begin", {"rater": self.name, "choice": choice}).json()["round"]
        items = self.ask("GET", "round", round=name, rater=self.name).json()["items"]
        for n, item in enumerate(items, start=1):
            said = {"label_1": saying(item), "label_2": ""}
            rating = {
                "n": n,
                "item": item["item"],
                "state": "rated",
                "said": said,
                "note": item["cells"]["text"][:1000],
            }
            self.ask("POST", "rating", {"round": name, "rater": self.name, "rating": rating})
        return name, items


def labelled_by(item) -> str:
    text = item["cells"]["text"]
    return "backtracking" if text.startswith(("Wait", "But", "Hmm")) else PAPER_TAXONOMY.labels[len(text) % 15]


def test_real_traces_are_rated_and_the_rater_is_an_annotator(tmp_path):
    config = overridden(config_of(tmp_path, real_lines(12)), {"name": "real"})
    store = ArtifactStore(config.storage)
    _, candidates = imported(config)
    annotations = label(config, candidates)
    RunRecords(store, "real").add(RUN, {}, {"candidates": candidates, "annotations": annotations}, goes_on=False)
    anna = Rater(config.storage.root, "anna")
    name, items = anna.rate_all(labelled_by)
    frame = store.read_table(candidates, "candidates.parquet")
    texts = {row.completion[span["start"] : span["end"]] for row in frame.itertuples() for span in row.segments}
    assert {item["cells"]["text"] for item in items} == texts, "raters see what the model wrote"
    missing = [what for what, text in HARD.items() if not any(text.strip() in shown for shown in texts)]
    assert not missing
    # The sheet is read back as it was said, whatever the texts and notes hold.
    path = tmp_path / "sheet.csv"
    path.write_bytes(anna.ask("GET", "sheet.csv", round=name, rater="anna").content)
    sheet = read_sheet(path, frame, PAPER_TAXONOMY)
    assert (sheet.num_items, sheet.num_not_rated) == (len(items), 0)
    results = anna.ask("GET", "results", round=name, rater="anna").json()
    kappa = {(row["a"], row["b"]): row["kappa"] for row in results["agreement"]}
    assert set(kappa) == {("anna", other) for other in ("the pipeline", "annotator A", "annotator B")}
    assert all(-1 < value < 1 for value in kappa.values()) and results["agreement"][0]["segments"] == len(items)
    published = anna.ask("POST", "publish", {"round": name, "rater": "anna"}).json()
    assert published["name"] == "human/anna" and published["segments"] == len(items)
    with_anna = overridden(config, {"annotate.annotator_a": {"model": "human/anna"}})
    rows = store.read_table(label(with_anna, candidates), "annotations.parquet")
    said = {text: labelled_by({"cells": {"text": text}}) for text in texts}
    completions = {row.trace_id: row for row in frame.itertuples()}
    for row in rows.itertuples():
        trace = SimpleNamespace(**completions[row.trace_id]._asdict())
        span = trace.segments[row.segment]
        assert list(row.labels_a) == [said[trace.completion[span["start"] : span["end"]]]]

"""How well a distilled annotator labels, how sure it may be, what it saves, and whether the weights survive it.

Three parts, each on traces that it did not learn from:

* *labels*: on three published sets of segment-labelled reasoning traces (see ``labels_of_others``), five folds of whole
  problems; beside the cue annotators on the labels that they can be compared on, and, where two people labelled the
  same traces, beside their agreement.
* *price*: what the paper's panel costs for its 6,973 traces, at today's prices, if 10, 20, 30 or 100 % of the segments
  go on to it, whole traces shown or excerpts. Traces are the first NQ-Open traces of an R1-distill, scaled; nothing is
  asked.
* *weights*: an annotator that learned from the labels of a fifth of the questions labels the rest, of which the least
  sure segments go back to the teacher; rank correlation of the segments' weights with those of the teacher's labels,
  and the held-out AUC of both. Teachers are the offline panel, on pocket traces and on the same R1-distill traces.

Run ``python -m benchmarks.distilled_annotator FOLDER`` (or set MRALIGN_REAL_DATA) with the folder of the traces; five
minutes. ``--encoder PATH`` adds the vectors of a sentence-transformers model,
or of a causal language model that reads the traces.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from benchmarks.hidden_labels import pocket_traces
from benchmarks.labels_of_others import annotate, labelled_segments, load_mappings, read_traces
from mralign_core.annotation.annotate import annotate_traces, trace_of
from mralign_core.annotation.prompts import Excerpt, ShownTrace, annotate_messages, excerpts_messages
from mralign_core.annotation.quoting import REPLY_TOKENS, STEP_TOKENS, NothingKept, quote_annotation
from mralign_core.annotation.replies import reply_schema
from mralign_core.config import AnnotateConfig, EndpointConfig, EstimateConfig, RewardConfig
from mralign_core.distillation.annotator import DistilledAnnotator, LocalLabeller
from mralign_core.distillation.features import Encoder
from mralign_core.distillation.fitting import LabelledTraces, distil, given_labels
from mralign_core.distillation.scores import SHARES, escalation_curve, macro_f1, said_labels, score_annotator
from mralign_core.estimation.diagnostics.discrimination import discriminate
from mralign_core.estimation.matrices import estimate_transitions
from mralign_core.estimation.traces import LabelledTrace
from mralign_core.estimation.weights import weigh_segments
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.llm.endpoint import price_of, request_params
from mralign_core.method.consolidation import LabelVote
from mralign_core.method.taxonomy import MAX_LABELS, PAPER_TAXONOMY
from mralign_core.method.traces import split_segments
from mralign_core.models.context_encoder import holds_language_model, load_context_encoder
from mralign_core.models.sentence_encoder import load_sentence_encoder
from tests.kept_replies import MemoryReplyStore

PAPERS_TRACES = 6_973
SHOWN_SHARES = (0.1, 0.2, 0.3, 1.0)
NUM_FOLDS = 5
MAIN, OTHERS = "v0_human_D", ("v0_human_A", "v0_human_B", "v0_human_C")
"""Who labelled all problems, and those who labelled some of the same."""
PANEL = {"annotator_a": "deepseek/deepseek-chat", "annotator_b": "openai/gpt-4o", "adjudicator": "openai/gpt-5"}
TOGETHER = 30
"""Segments that a request by excerpts asks about."""
WHOLE = 10_000
"""Neighbours that are the whole trace."""
CHEAP = {"annotator_b": PANEL["annotator_a"]}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "2 neighbours": {"escalate_context": 2},
    f"2 neighbours, {TOGETHER} a request": {"escalate_context": 2, "escalate_together": TOGETHER},
    f"1 neighbour, {TOGETHER} a request": {"escalate_context": 1, "escalate_together": TOGETHER},
    "deepseek-chat": CHEAP,
    f"deepseek-chat, 1 neighbour, {TOGETHER} a request": {
        **CHEAP,
        "escalate_context": 1,
        "escalate_together": TOGETHER,
    },
    f"deepseek-chat, 2 neighbours, {TOGETHER} a request": {
        **CHEAP,
        "escalate_context": 2,
        "escalate_together": TOGETHER,
    },
}
PARTS = (
    ("2 neighbours", 2, 0),
    (f"2 neighbours, {TOGETHER} a request", 2, TOGETHER),
    (f"1 neighbour, {TOGETHER} a request", 1, TOGETHER),
)
OFFLINE = {"annotator_a": "cue/a", "annotator_b": "cue/b", "adjudicator": "cue/adjudicator"}


class Corpus(NamedTuple):
    """Traces with a teacher's labels and what became of them."""

    candidates: pd.DataFrame
    labels: list[list[list[str]]]
    is_positive: list[bool]

    @property
    def teaching(self) -> LabelledTraces:
        """As what an annotator learns from."""
        return LabelledTraces(self.texts, self.labels, self.candidates["question_id"].tolist())

    @property
    def texts(self) -> list[list[str]]:
        """Segments of each trace."""
        rows = self.candidates.itertuples(index=False)
        return [[row.completion[span["start"] : span["end"]] for span in row.segments] for row in rows]


def main() -> None:
    """Print the tables of all parts, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ["MRALIGN_REAL_DATA"]) if "MRALIGN_REAL_DATA" in os.environ else None
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="the folder that has traces/")
    parser.add_argument("--parts", default="labels,price,weights", help="some of labels, price, weights")
    parser.add_argument("--sets", default="", help="some of the published sets, for labels")
    parser.add_argument("--encoder", default="", help="a sentence-transformers or a language model")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many traces of each set")
    options = parser.parse_args()
    if options.folder is None:
        parser.error("name the folder that has traces/, or set MRALIGN_REAL_DATA")
    traces = options.folder / "traces"
    encoder = vectors_by(options.encoder) if options.encoder else None
    for part in options.parts.split(","):
        if part == "labels":
            mappings = load_mappings()
            for name in options.sets.split(",") if options.sets else mappings:
                mapping = mappings[name]
                print_labels(name, mapping, traces / "labelled", options.limit, encoder)
        elif part == "price":
            print_prices(real_corpus(traces))
        elif part == "weights":
            print_weights("585 R1-distill traces", real_corpus(traces))
            print_weights("1,500 pocket traces", pocket_corpus())
        else:
            parser.error(f"--parts: {part!r} is none of labels, price, weights")


class Vectors(NamedTuple):
    """An encoder, as ``distil`` takes it."""

    encode: Encoder
    reads_traces: bool


def vectors_by(path: str) -> Vectors:
    """A model that reads each trace once, however many folds it is in."""
    reads_traces = holds_language_model(path)
    load = load_context_encoder if reads_traces else load_sentence_encoder
    encode = cache(load(path, "--encoder", "leave it out"))
    return Vectors(lambda texts: encode(tuple(texts)), reads_traces)


def print_labels(
    name: str, mapping: Mapping[str, Any], folder: Path, limit: int | None, encoder: Vectors | None
) -> None:
    """How well labels of others are learned, on problems that were not learned from."""
    split = MAIN if name == "reasoningflow_human" else None
    traces = list(read_traces(folder / f"{name}.jsonl.gz", split))[:limit]
    segments = [labelled_segments(trace) for trace in traces]
    texts = [[segment["text"].strip() for segment in each] for each in segments]
    labels = sorted({segment["label"] for each in segments for segment in each})
    teaching = LabelledTraces(
        texts,
        [[[segment["label"]] for segment in each] for each in segments],
        [trace.get("question") or trace["id"] for trace in traces],
    )
    held_out = outer_folds(teaching, labels, encoder)
    given = held_out.given
    scores = score_annotator(held_out.probs, given, labels)
    print(f"\n## {name}: {len(texts)} traces, {len(given):,} segments, {len(labels)} labels\n")
    print(f"distilled: macro-F1 {scores.macro_f1:.3f}, accuracy {scores.accuracy:.3f}, ", end="")
    print(f"calibration error {scores.calibration_error:.3f}")
    compared = [label for label in labels if mapping.get(label, {}).get("ours")]
    places = [labels.index(label) for label in compared]
    said = said_labels(held_out.probs, labels)
    print(f"on the {len(compared)} labels that are mapped: distilled {macro_f1(said[:, places], given[:, places]):.3f}")
    theirs, cue = annotate(traces, noise=False)
    assert [labels.index(each) for each in theirs] == given.argmax(axis=1).tolist()
    for who, ours in cue.items():
        wanted = [frozenset(mapping[label]["ours"]) for label in compared]
        found = np.array([[bool(each & labels_) for labels_ in wanted] for each in ours])
        print(f"  {who}: {macro_f1(found, given[:, places]):.3f}")
    if name == "reasoningflow_human":
        print_people(folder / f"{name}.jsonl.gz", traces, held_out, labels)
    print("\n| segments that go on | traces touched | macro-F1 of all | of its own | accuracy of its own |")
    print("|---|---|---|---|---|")
    for row in escalation_curve(held_out.probs, given, labels, teaching.trace_of_segment):
        cells = [f"{value:.3f}" for value in (row.macro_f1, row.macro_f1_rest, row.accuracy_rest)]
        print(f"| {row.share:.0%} | {row.traces:.0%} | {' | '.join(cells)} |")


class HeldOut(NamedTuple):
    """Confidences of annotators that had not seen the problems, and the labels that were given; both (T, S)."""

    probs: NDArray[np.float64]
    given: NDArray[np.bool_]


def outer_folds(teaching: LabelledTraces, labels: Sequence[str], encoder: Vectors | None = None) -> HeldOut:
    """What annotators say of problems that neither their chain, nor its penalty, nor its calibration has seen."""
    given, trace_of_segment = given_labels(teaching, labels), teaching.trace_of_segment
    probs, numbers = np.empty(given.shape), np.arange(len(teaching.texts))
    for learned, rest in GroupKFold(NUM_FOLDS).split(numbers, groups=np.array(teaching.questions)):
        annotator = distil(part(teaching, learned), labels, **(encoder._asdict() if encoder else {})).annotator
        rows = np.isin(trace_of_segment, rest)
        probs[rows] = annotator.confidences([teaching.texts[trace] for trace in rest])
    return HeldOut(probs, given)


def part(teaching: LabelledTraces, traces: Sequence[int] | NDArray[np.int64]) -> LabelledTraces:
    """Some of the traces."""
    texts, labels, questions = teaching
    return LabelledTraces(
        [texts[trace] for trace in traces],
        [labels[trace] for trace in traces],
        [questions[trace] for trace in traces],
    )


def print_people(path: Path, traces: Sequence[Mapping[str, Any]], held_out: HeldOut, labels: Sequence[str]) -> None:
    """How well one person's labels are found by another person, and by the annotator that learned from the first."""
    others = {trace["id"]: trace for who in OTHERS for trace in read_traces(path, who)}
    rows: list[int] = []
    said_by_other: list[int] = []
    start = 0
    for trace in traces:
        segments = labelled_segments(trace)
        other = others.get(trace["id"])
        if other and [each["text"] for each in labelled_segments(other)] == [each["text"] for each in segments]:
            rows += range(start, start + len(segments))
            said_by_other += [labels.index(each["label"]) for each in labelled_segments(other)]
        start += len(segments)
    given, probs = held_out.given[rows], held_out.probs[rows]
    person = np.eye(len(labels), dtype=bool)[said_by_other]
    f1s = macro_f1(person, given), macro_f1(said_labels(probs, labels), given)
    right = (person & given).any(axis=1).mean(), given[np.arange(len(rows)), probs.argmax(axis=1)].mean()
    print(
        f"on {len(rows):,} segments that two people labelled: another person macro-F1 {f1s[0]:.3f}, accuracy ", end=""
    )
    print(f"{right[0]:.3f}; distilled {f1s[1]:.3f}, {right[1]:.3f}, which is {right[1] / right[0]:.0%} of people's")
    print("\n| least sure segments labelled by that person | right of all | of people's | differ from the distilled |")
    print("|---|---|---|---|")
    order, own, theirs = np.argsort(probs.max(axis=1), kind="stable"), probs.argmax(axis=1), np.array(said_by_other)
    for share in SHARES:
        goes_on = order[: round(share * len(rows))]
        mixed = own.copy()
        mixed[goes_on] = theirs[goes_on]
        of_all, differ = (
            given[np.arange(len(rows)), mixed].mean(),
            (own != theirs)[goes_on].sum() / max(1, len(goes_on)),
        )
        print(f"| {share:.0%} | {of_all:.3f} | {of_all / right[0]:.1%} | {differ:.0%} |")


def real_corpus(folder: Path) -> Corpus:
    """Real traces of questions of fact, labelled by the offline panel without noise."""
    rows, is_positive = [], []
    for name in ("main", "samples"):
        for line in (folder / f"race_nq_ds7b_{name}.jsonl").read_text(encoding="utf-8").splitlines():
            trace = json.loads(line)
            spans = [span._asdict() for span in split_segments(trace["thinking"])]
            if len(spans) >= 4:
                about = {"question": trace["question"], "answers": list(trace["gold"])}
                rows.append({**about, "completion": trace["thinking"], "segments": spans})
                is_positive.append(bool(trace["correct_contains"]))
    candidates = pd.DataFrame(rows)
    candidates["trace_id"] = [f"{number:05d}" for number in range(len(rows))]
    candidates["question_id"] = candidates["question"]
    return labelled(candidates, is_positive, {"cue_drop_prob": 0.0, "cue_flip_prob": 0.0})


def pocket_corpus() -> Corpus:
    """Traces of a pocket world, labelled by the demo's offline panel."""
    candidates = pocket_traces(0, 1_500)
    return labelled(candidates, (candidates["polarity"] == "positive").tolist(), {})


def labelled(candidates: pd.DataFrame, is_positive: list[bool], noise: Mapping[str, float]) -> Corpus:
    """Have the offline panel label traces."""
    section = AnnotateConfig.model_validate({**OFFLINE, **noise})
    client = LLMClient(MemoryReplyStore(), concurrency=1)
    made = annotate_traces(candidates, section, seed=0, label_set=PAPER_LABEL_SET, client=client)
    by_trace = made.annotations.groupby("trace_id", sort=False)["labels"].apply(list)
    return Corpus(candidates, [list(map(list, by_trace[name])) for name in candidates["trace_id"]], is_positive)


def print_prices(corpus: Corpus) -> None:
    """Dollars of the paper's panel for its traces, with and without an annotator before it."""
    os.environ.setdefault("DEEPSEEK_API_KEY", "none: nothing is asked")
    os.environ.setdefault("OPENAI_API_KEY", "none: nothing is asked")
    folds = GroupKFold(NUM_FOLDS).split(corpus.labels, groups=corpus.candidates["question_id"])
    learned, rest = next(iter(folds))
    annotator = distil(part(corpus.teaching, learned), PAPER_TAXONOMY.labels).annotator
    traces = corpus.candidates.iloc[rest]
    votes = [annotator.votes([corpus.texts[trace]]) for trace in rest]
    of_segments = np.array([max(vote.confidences) for of_trace in votes for vote in of_trace])
    of_traces = np.array([np.mean([max(vote.confidences) for vote in of_trace]) for of_trace in votes])
    print_request_parts(traces, votes, float(np.quantile(of_segments, 0.1)))
    print(f"\n## The paper's panel for {PAPERS_TRACES:,} traces, by {len(rest)} that were not learned from\n")
    print("| | requests | least | of the panel's | with cached prompts | most | of the panel's |")
    print("|---|---|---|---|---|---|---|")
    alone = print_price("the panel alone", traces, PANEL, None)
    for name, values, settings in (
        ("segments", of_segments, {}),
        *((f"segments, {way}", of_segments, settings) for way, settings in WAYS.items()),
        ("traces", of_traces, {"escalate": "traces"}),
    ):
        for share in SHOWN_SHARES:
            below = 10.0 if share == 1 else float(np.quantile(values, share))
            section = {**PANEL, "annotator_a": "local/measured", "escalate_below": round(below, 3), **settings}
            print_price(f"{share:.0%} of {name}", traces, section, annotator, alone)


class Price(NamedTuple):
    """Dollars that are certain, the same where prompts that begin alike are cached, and the most."""

    requests: int
    least: float
    cached: float
    most: float


def print_price(
    name: str,
    traces: pd.DataFrame,
    settings: Mapping[str, Any],
    annotator: DistilledAnnotator | None,
    panel: Price | None = None,
) -> Price:
    """Requests and dollars that are certain, and most dollars: every segment that B was asked about adjudicated."""
    section = AnnotateConfig.model_validate(settings)
    quotes = quote_annotation(
        traces,
        section,
        seed=0,
        label_set=PAPER_LABEL_SET,
        replies=NothingKept(),
        num_traces=PAPERS_TRACES,
        labellers={"annotator_a": LocalLabeller("local/measured", "", annotator)} if annotator else {},
    )
    requests, least, most = (
        sum(getattr(each, amount) for each in quotes) for amount in ("requests", "cost_usd", "most_cost_usd")
    )
    is_excerpt = section.escalate_context is not None
    again = ((each.model, each.requests - 1) for each in quotes if each.requests > 1)
    rebate = sum(requests * cached_rebate_usd(model, is_excerpt) for model, requests in again)
    price = Price(requests, least, least - rebate, most)
    of_panel = [f"{price.least / panel.least:.1%}", f"{price.most / panel.most:.1%}"] if panel else ["", ""]
    print(f"| {name} | {requests:,} | ${least:,.2f} | {of_panel[0]} | ${price.cached:,.2f} | ${most:,.2f} ", end="")
    print(f"| {of_panel[1]} |")
    return price


def cached_rebate_usd(model: str, is_excerpt: bool) -> float:
    """What a request costs less whose beginning, the same for all, the provider has from an earlier one.

    Of the instructions and the schema; OpenAI caches from 1,024 tokens on, in steps of 128.
    """
    import litellm

    info = litellm.get_model_info(model)
    full_usd = info["input_cost_per_token"]
    tokens = instruction_tokens(model, is_excerpt)
    if model.startswith("openai/"):
        tokens = 128 * (tokens // 128) if tokens >= 1024 else 0
    return float(tokens * (full_usd - (info.get("cache_read_input_token_cost") or full_usd)))


def instruction_tokens(model: str, is_excerpt: bool) -> int:
    """Tokens of the instructions, labels and reply schema, which begin every request."""
    import litellm

    trace = ShownTrace("", [""], [""])
    if is_excerpt:
        system, _ = excerpts_messages([Excerpt(trace, [0], 0)], max_labels=MAX_LABELS, taxonomy=PAPER_TAXONOMY)
    else:
        system, _ = annotate_messages(trace, max_labels=MAX_LABELS, taxonomy=PAPER_TAXONOMY)
    shape = request_params(EndpointConfig(model=model), reply_schema(PAPER_TAXONOMY)).get("response_format")
    texts = [system["content"], json.dumps(shape) if shape else ""]
    return sum(litellm.token_counter(model=model, text=text) for text in texts)


def print_request_parts(traces: pd.DataFrame, votes: Sequence[Sequence[LabelVote]], below: float) -> None:
    """What gpt-4o is paid for in a request about the unsure segments of a trace, by what is shown."""
    import litellm

    model, price = PANEL["annotator_b"], price_of(EndpointConfig(model=PANEL["annotator_b"]))
    unsure = [
        (trace_of(row), asked)
        for row, of_trace in zip(traces.itertuples(index=False), votes, strict=True)
        if (asked := [place for place, vote in enumerate(of_trace) if max(vote.confidences) < below])
    ]
    num_asked = sum(len(asked) for _, asked in unsure)

    def shown_tokens(context: int) -> int:
        texts = [
            excerpts_messages([Excerpt(*each, context)], max_labels=MAX_LABELS, taxonomy=PAPER_TAXONOMY)[1]
            for each in unsure
        ]
        return sum(litellm.token_counter(model=model, text=text["content"]) for text in texts)

    alone = num_asked / len(unsure)
    print(f"\n## {model}'s dollars for a segment, at a tenth of the segments: {alone:.1f} in a trace\n")
    print("| shown | instructions, labels, schema | question and segments | reply |\n|---|---|---|---|")
    for name, context, per_request in (("the trace", WHOLE, alone), *((*each[:2], each[2] or alone) for each in PARTS)):
        fixed = instruction_tokens(model, context < WHOLE) / per_request * price.input_usd
        shown = shown_tokens(context) / num_asked * price.input_usd
        reply = (REPLY_TOKENS / per_request + STEP_TOKENS) * price.output_usd
        print(f"| {name} | ${fixed:.5f} | ${shown:.5f} | ${reply:.5f} |")


def print_weights(name: str, corpus: Corpus) -> None:
    """Whether the weights of the teacher's labels are those of the annotator's."""
    folds = GroupKFold(NUM_FOLDS).split(corpus.labels, groups=corpus.candidates["question_id"])
    rest, learned = next(iter(folds))
    annotator = distil(part(corpus.teaching, learned), PAPER_TAXONOMY.labels).annotator
    texts = [corpus.texts[trace] for trace in rest]
    probs = annotator.confidences(texts)
    teacher = [corpus.labels[trace] for trace in rest]
    flat = [segment for trace in teacher for segment in trace]
    weights = weights_of(corpus, rest, teacher)
    print(f"\n## Weights, {name}: learned from {len(learned)}, labels {len(rest)} ({len(flat):,} segments)\n")
    print("| segments that go back | same labels | rank correlation of w | crosses 1 | AUC |\n|---|---|---|---|---|")
    print(f"| the teacher's labels | | | | {auc(corpus, rest, teacher)} |")
    order = np.argsort(probs.max(axis=1), kind="stable")
    for share in SHARES:
        back = set(order[: round(share * len(order))].tolist())
        own = [list(vote.labels) for vote in annotator.votes(texts)]
        mixed = [flat[row] if row in back else own[row] for row in range(len(flat))]
        labels = list(regrouped(mixed, [len(each) for each in teacher]))
        found = weights_of(corpus, rest, labels)
        same = np.mean([set(a) == set(b) for a, b in zip(mixed, flat, strict=True)])
        rank = pd.Series(found).corr(pd.Series(weights), method="spearman")
        crosses = np.mean((found > 1) != (weights > 1))
        print(f"| {share:.0%} | {same:.1%} | {rank:.3f} | {crosses:.1%} | {auc(corpus, rest, labels)} |")


def regrouped(segments: Sequence[list[str]], lengths: Sequence[int]) -> Iterator[list[list[str]]]:
    """Segments by trace again."""
    for start, end in pairwise([0, *np.cumsum(lengths).tolist()]):
        yield list(segments[start:end])


def labelled_traces(
    corpus: Corpus, numbers: NDArray[np.int64], labels: Sequence[Sequence[Sequence[str]]]
) -> list[LabelledTrace]:
    """Traces as the estimator sees them, a step a segment."""
    return [
        LabelledTrace(
            trace_id=f"{trace:05d}",
            polarity="positive" if corpus.is_positive[trace] else "negative",
            steps=[tuple(sorted(PAPER_TAXONOMY.state(label) for label in segment)) for segment in of_trace],
            step_of_segment=list(range(len(of_trace))),
            question_id=str(corpus.candidates["question_id"].iloc[trace]),
        )
        for trace, of_trace in zip(numbers.tolist(), labels, strict=True)
    ]


def weights_of(
    corpus: Corpus, numbers: NDArray[np.int64], labels: Sequence[Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """The weight of every segment, under the paper's settings."""
    traces = labelled_traces(corpus, numbers, labels)
    section = EstimateConfig(num_resamples=0)
    matrices = estimate_transitions(traces, section, PAPER_TAXONOMY)
    return weigh_segments(traces, matrices, RewardConfig(), confidence=0.95)["weight"].to_numpy(dtype=np.float64)


def auc(corpus: Corpus, numbers: NDArray[np.int64], labels: Sequence[Sequence[Sequence[str]]]) -> str:
    """How well these labels tell right from wrong on questions not seen, with its interval."""
    traces = labelled_traces(corpus, numbers, labels)
    skipped: dict[str, str] = {}
    found = discriminate(traces, PAPER_TAXONOMY.num_states, EstimateConfig(), np.random.default_rng(0), skipped)
    overall = found[0].overall
    if overall is None:
        return "–"
    return f"{overall.auc:.3f} [{overall.low:.3f}, {overall.high:.3f}]" if overall.low else f"{overall.auc:.3f}"


if __name__ == "__main__":
    main()

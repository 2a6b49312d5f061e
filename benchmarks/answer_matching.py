"""How far the rules of matching differ on real text: word boundaries or substring, with variants or without.

Reads traces with gold answers (JSONL with ``question``, ``gold``, ``thinking``, ``answer``) and another set's gold
answers (JSONL with ``question``, ``answer`` as a list), from a folder laid out as below; the data is not ours to ship.

* On the traces' own gold answers: EM_t, and Acc and Mis. The model answers in sentences, so that an answer counts as
  right when it contains a gold answer.
* False hits: each question's gold answers are looked for in the thinking on other questions, drawn at random. What is
  found there names nothing.
* What variants join: gold answers of one question that equal another one of it, and gold answers of random other
  questions that do.

Run ``python -m benchmarks.answer_matching --data FOLDER`` from the repository (or set MRALIGN_REAL_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mralign_core.method.matching import MatchRules, contains_match, exact_match, normalise, thought_match
from mralign_core.method.quantities import holds_quantity

TRACES = ("traces/race_nq_ds7b_main.jsonl", "traces/race_nq_ds7b_samples.jsonl")
GOLDS = "nq_open/NQ-open.dev.jsonl"
RULES = {
    "words": MatchRules(variants=False),
    "words, variants (default)": MatchRules(),
    "substring (the paper)": MatchRules(containment="substring", variants=False),
    "substring, variants": MatchRules(containment="substring"),
}

Record = dict[str, Any]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MRALIGN_REAL_DATA"), help="folder of the data")
    parser.add_argument("--traces-per-question", type=int, default=30, help="other questions' traces to search")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of the data, or set MRALIGN_REAL_DATA")
    traces = [trace for name in TRACES for trace in _read(Path(options.data, name)) if trace["thinking"]]
    questions = _read(Path(options.data, GOLDS))
    print_own(traces)
    print_false_hits(traces, questions, options.traces_per_question)
    print_joined(questions)


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def print_own(traces: Sequence[Record]) -> None:
    """EM_t, Acc and Mis on the traces' own gold answers."""
    print(f"\n{len(traces)} traces, own gold answers\n\n| rule | EM_t | right | Acc | Mis |\n|---|---|---|---|---|")
    for name, rules in RULES.items():
        thought = [thought_match(trace["thinking"], trace["gold"], rules) for trace in traces]
        right = [contains_match(trace["answer"], trace["gold"], rules) for trace in traces]
        both = sum(a and b for a, b in zip(thought, right, strict=True))
        either = sum(a != b for a, b in zip(thought, right, strict=True))
        counts = " | ".join(
            f"{count} ({count / len(traces):.1%})" for count in (sum(thought), sum(right), both, either)
        )
        print(f"| {name} | {counts} |")
    exact = [sum(exact_match(trace["answer"], trace["gold"], rules) for trace in traces) for rules in RULES.values()]
    print(f"\nanswers that equal a gold answer: {exact[0]}, with variants {exact[1]}")


def print_false_hits(traces: Sequence[Record], questions: Sequence[Record], per_question: int) -> None:
    """How often another question's gold answers are found, in all and by whether they hold a number."""
    rng = random.Random(0)
    pairs = []
    for question in questions:
        asked = normalise(question["question"])
        others = [trace for trace in rng.sample(traces, per_question) if normalise(trace["question"]) != asked]
        pairs += [(trace["thinking"], question["answer"]) for trace in others]
    with_number = [any(holds_quantity(gold.lower()) for gold in golds) for _, golds in pairs]
    groups = {"all": [True] * len(pairs), "number": with_number, "no number": [not each for each in with_number]}
    sizes = ", ".join(f"{sum(group):,} {name}" for name, group in groups.items())
    print(f"\nfalse hits, in % of pairs ({sizes})\n\n| rule | {' | '.join(groups)} |\n|---|---|---|---|")
    for name, rules in RULES.items():
        found = [thought_match(thinking, golds, rules) for thinking, golds in pairs]
        shares = [
            sum(hit and chosen for hit, chosen in zip(found, group, strict=True)) / sum(group)
            for group in groups.values()
        ]
        print(f"| {name} | {' | '.join(f'{share:.2%}' for share in shares)} |")
    plain, variants = (
        [thought_match(thinking, golds, RULES[name]) for thinking, golds in pairs] for name in list(RULES)[:2]
    )
    gained = sum(b and not a for a, b in zip(plain, variants, strict=True))
    lost = sum(a and not b for a, b in zip(plain, variants, strict=True))
    print(f"\non word boundaries, variants add {gained} false hits and remove {lost}")


def print_joined(questions: Sequence[Record]) -> None:
    """Pairs of gold answers with numbers that are equal, of one question and of different ones."""
    rng = random.Random(0)
    golds = [[gold for gold in question["answer"] if holds_quantity(gold.lower())] for question in questions]
    of_one = [pair for each in golds for pair in combinations(each, 2)]
    everything = [gold for each in golds for gold in each]
    of_two = [(rng.choice(everything), rng.choice(everything)) for _ in range(200_000)]
    print("\n| pairs of gold answers with a number | equal | with variants |\n|---|---|---|")
    for name, pairs in {"of one question": of_one, "drawn at random": of_two}.items():
        counts = [sum(exact_match(a, [b], rules) for a, b in pairs) for rules in list(RULES.values())[:2]]
        print(f"| {name}, {len(pairs):,} | {counts[0]:,} | {counts[1]:,} |")


if __name__ == "__main__":
    main()

"""Rows a minute of exact match and of the search in the thinking, beside the plainest code for the same work.

Made-up texts, seeded: answers of one to nine words with two gold answers each, a third of them equal to one; thinking
of 400 words, half of which name a gold answer. Six rows in a row share their gold answers, as the draws of a question
do. A quarter of the gold answers hold numbers, a fifth of the texts have typographic quotes, a twentieth accents.

The peer is SQuAD's ``normalize_answer`` as its evaluation script has it, with ``==`` for answers and ``in`` for the
thinking. It reads no variants and finds "Iran" in "Iranian".

One process, one thread, CPU time; each figure is the best of three passes in one run.

Run ``python -m benchmarks.matching_speed`` from the repository.
"""

from __future__ import annotations

import argparse
import random
import re
import string
import time
from collections.abc import Callable, Sequence

from mralign_core.method.matching import MatchRules, exact_match, thought_match

Row = tuple[str, Sequence[str]]
Match = Callable[[str, Sequence[str]], bool]

COMMON = (
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "was",
    "on",
    "but",
    "so",
    "one",
    "first",
    "maybe",
    "two",
)
NUMBERS = ("17", "1,250", "4", "three", "twenty-one", "3rd", "seventh", "1.5 million", "4 July 1776", "1988", "60%")
THINKING_WORDS = 400
DRAWS = 6


def main() -> None:
    """Make the rows, time each job, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=100_000, help="rows of answers")
    parser.add_argument("--thinking", type=int, default=5_000, help="rows of thinking")
    options = parser.parse_args()
    rng = random.Random(0)
    vocabulary = [_made_up_word(rng) for _ in range(20_000)]
    golds = [[_gold(rng, vocabulary) for _ in range(2)] for _ in range(max(options.answers, options.thinking))]
    answers = [(_answer(rng, vocabulary, golds[n // DRAWS]), golds[n // DRAWS]) for n in range(options.answers)]
    thinking = [(_thinking(rng, vocabulary, golds[n // DRAWS]), golds[n // DRAWS]) for n in range(options.thinking)]
    print("| work | rows a minute | of them true | × the peer |\n|---|---|---|---|")
    compare("answers", answers, exact_match, squad_exact)
    compare("thinking", thinking, thought_match, squad_in)


def compare(work: str, rows: Sequence[Row], match: Callable[..., bool], peer: Match) -> None:
    """Print a line for each rule, and one for the peer."""
    jobs: dict[str, Match] = {
        "peer: SQuAD's": peer,
        "default": match,
        "without variants": lambda text, golds: match(text, golds, MatchRules(variants=False)),
        "substring": lambda text, golds: match(text, golds, MatchRules(containment="substring")),
    }
    if match is exact_match:
        del jobs["substring"]
    of_peer = 0.0
    for name, job in jobs.items():
        per_minute, found = measure(job, rows)
        of_peer = of_peer or per_minute
        print(f"| {work}, {name} | {per_minute:,.0f} | {found / len(rows):.1%} | {per_minute / of_peer:.1f} |")


def measure(match: Match, rows: Sequence[Row]) -> tuple[float, int]:
    """Rows a minute, the best of three passes, and the number that match."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        found = sum(match(text, golds) for text, golds in rows)
        best = min(best, time.process_time() - started)
    return 60 * len(rows) / best, found


def squad_normalise(text: str) -> str:
    """SQuAD's ``normalize_answer``."""
    punctuation = set(string.punctuation)
    bare = "".join(char for char in text.lower() if char not in punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad_exact(answer: str, golds: Sequence[str]) -> bool:
    """SQuAD's exact match."""
    normalised = squad_normalise(answer)
    return any(normalised == squad_normalise(gold) for gold in golds)


def squad_in(thinking: str, golds: Sequence[str]) -> bool:
    """The plain substring of normalised texts."""
    normalised = squad_normalise(thinking)
    return any(squad_normalise(gold) in normalised for gold in golds)


def _made_up_word(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 5)))


def _gold(rng: random.Random, vocabulary: Sequence[str]) -> str:
    words = [rng.choice(vocabulary).capitalize() for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.25:
        return rng.choice(NUMBERS) if rng.random() < 0.7 else f"{words[0]} {rng.choice(NUMBERS)}"
    return " ".join(words)


def _answer(rng: random.Random, vocabulary: Sequence[str], golds: Sequence[str]) -> str:
    if rng.random() < 1 / 3:
        return f"The {rng.choice(golds)}."
    return f"{_words(rng, vocabulary, rng.randint(1, 9))}."


def _thinking(rng: random.Random, vocabulary: Sequence[str], golds: Sequence[str]) -> str:
    sentences = [_words(rng, vocabulary, 20) for _ in range(THINKING_WORDS // 20)]
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(len(sentences)), f"So maybe it's {rng.choice(golds)}, or not")
    kind = rng.random()
    mark = "’" if kind < 0.2 else "'"
    return f"Okay, let{mark}s see{', é' if kind > 0.95 else ''}. " + ".\n\n".join(sentences)


def _words(rng: random.Random, vocabulary: Sequence[str], number: int) -> str:
    words = [rng.choice(COMMON if rng.random() < 0.6 else vocabulary) for _ in range(number)]
    if rng.random() < 0.15:
        words[rng.randrange(number)] = rng.choice(NUMBERS)
    return " ".join(words).capitalize()


if __name__ == "__main__":
    main()

"""Open-vocabulary labels of every segment, and how often each was given (App. B.1)."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mralign_core.annotation.annotate import gather_all, trace_of
from mralign_core.annotation.prompts import ShownTrace
from mralign_core.config import AskAgain, EndpointConfig
from mralign_core.errors import DataError
from mralign_core.induction.asking import Answer, ask
from mralign_core.induction.prompts import open_label_messages
from mralign_core.induction.replies import OpenLabelReply, parse_open_labels
from mralign_core.llm import background
from mralign_core.llm.client import Client


class OpenLabels(NamedTuple):
    """Normalised labels with their counts, most frequent first, and the traces whose replies could not be used.

    ``failures`` maps a trace to its problem; ``num_traces`` and ``num_segments`` count what was labelled, and
    ``num_to_ask`` the failures that another run asks again.
    """

    counts: dict[str, int]
    failures: dict[str, str]
    num_traces: int
    num_segments: int
    cost_usd: float
    num_to_ask: int = 0


def sample_traces(candidates: pd.DataFrame, num_traces: int, seed: int) -> pd.DataFrame:
    """So many rows at most, drawn without replacement, in their order in the table."""
    if len(candidates) <= num_traces:
        return candidates
    places = np.random.default_rng(seed).choice(len(candidates), size=num_traces, replace=False)
    return candidates.iloc[np.sort(places)]


def label_openly(
    candidates: pd.DataFrame,
    endpoint: EndpointConfig,
    client: Client,
    on_progress: Callable[[int, int], None] | None = None,
    ask_again: AskAgain = "auto",
) -> OpenLabels:
    """Ask a model what each segment of each trace does, in words of its own.

    Args:
        candidates: table ``candidates``.
        endpoint: the labeller.
        client: what asks it, as many at once as it allows.
        on_progress: called with (done, total) as traces finish, in the calling thread.
        ask_again: what is asked again of what an earlier run left out.

    Raises:
        DataError: not one trace could be labelled.
    """
    from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

    params = api.request_params(endpoint, OpenLabelReply.model_json_schema())
    total = len(candidates)

    async def label_all(report_done: Callable[[int], None]) -> list[Answer[list[list[str]]]]:
        counter = itertools.count(1)

        async def label(row: Any) -> Answer[list[list[str]]]:
            async with contextlib.nullcontext() if endpoint.use_batch_api else client.admission:
                answer = await _label_trace(trace_of(row), endpoint, client, params, ask_again)
            report_done(next(counter))
            return answer

        return await gather_all([label(row) for row in candidates.itertuples(index=False)])

    answers = background.run(label_all, lambda done: on_progress(done, total) if on_progress else None)
    return _counted(candidates["trace_id"].tolist(), answers)


async def _label_trace(
    trace: ShownTrace, endpoint: EndpointConfig, client: Client, params: dict[str, Any], ask_again: AskAgain
) -> Answer[list[list[str]]]:
    def parse(text: str, finish_reason: str) -> list[list[str]]:
        return parse_open_labels(text, finish_reason, len(trace.segments))

    return await ask(client, endpoint, open_label_messages(trace), params, parse, ask_again)


def _counted(trace_ids: Sequence[str], answers: Sequence[Answer[list[list[str]]]]) -> OpenLabels:
    labelled = [answer.parsed for answer in answers if answer.parsed is not None]
    failures = {
        trace_id: answer.problem for trace_id, answer in zip(trace_ids, answers, strict=True) if answer.parsed is None
    }
    if not labelled:
        first = next(iter(failures.items()), ("", "there are no traces"))
        raise DataError(f"induce.labeller labelled none of {len(answers)} traces; the first ({first[0]}): {first[1]}")
    counts = Counter(phrase for trace in labelled for phrases in trace for phrase in phrases)
    # Equal counts go by the alphabet, so that the order doesn't hang on which trace came first.
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return OpenLabels(
        dict(ordered),
        failures,
        len(labelled),
        sum(map(len, labelled)),
        sum(answer.cost_usd for answer in answers),
        sum(answer.parsed is None and not answer.is_final for answer in answers),
    )

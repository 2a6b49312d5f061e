"""What the output and error files of a batch say of its requests, a line each, in the words of direct requests.

Importing litellm takes seconds, so this module is imported where a client is made.
"""

from __future__ import annotations

import json
import time
from typing import Any

from litellm.litellm_core_utils.llm_response_utils.convert_dict_to_response import convert_to_model_response_object
from litellm.llms.openai.common_utils import OpenAIError
from litellm.types.utils import ModelResponse

from mralign_core.config import EndpointConfig
from mralign_core.errors import UserError
from mralign_core.llm.batch_endpoint import BatchStatus, raise_as_direct
from mralign_core.llm.batch_items import RequestBatch
from mralign_core.llm.endpoint import NO_BOUNDS, read_completion
from mralign_core.llm.exchange import Exchange, attempt_error
from mralign_core.llm.faults import AttemptError
from mralign_core.llm.request import reply_record
from mralign_core.llm.tidying import tidied_value

PASSING_PROBLEMS = ("token_limit_exceeded", "rate_limit_exceeded", "server_error", "internal_error")
"""Codes of a batch that failed as a whole which can pass: too much in the queue, or the provider's own trouble."""
NEVER_RUN_WORDS = ("expired", "cancelled")
"""In the codes of requests that a batch did not come to."""


def parse_line(text: bytes) -> dict[str, Any]:
    """A line of an output or error file; empty where it is no JSON object."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def line_outcome(
    batch: RequestBatch, status: BatchStatus, digest: str, line: dict[str, Any] | None
) -> dict[str, Any] | Exception:
    """What became of a request: the record of a reply, or of a refusal of its content; else a direct request's error.

    Args:
        batch: what was submitted.
        status: how the batch ended.
        digest: of the request.
        line: what the files say of it; None where they say nothing.
    """
    endpoint, item = batch.endpoint, batch.items[digest]
    if line is None or not isinstance(line.get("response"), dict):  # lines of requests that were never run have none
        return _unanswered(batch, status, line)
    try:
        bounds = NO_BOUNDS._replace(usd=item.most_usd)
        reading = read_completion(endpoint, _response_of(endpoint, line), bounds)
    except Exception as error:
        fault = attempt_error(error, time.time(), _exchange_of(line))
        if fault.kind != "content":
            return fault
        reading = {"finish_reason": "content_filter", "response": str(error)}
    return reply_record(endpoint.model, digest, item.prompt_digest, reading, time.time() - batch.intended_at)


def _unanswered(batch: RequestBatch, status: BatchStatus, line: dict[str, Any] | None) -> Exception:
    """What it means for a request that its batch ended without a response to it."""
    problems = "; ".join(f"{code}: {message}" for code, message in status.problems[:5])
    if status.status == "cancelled":
        return UserError(
            f"{batch} was cancelled at the provider; what it brought is kept: run again to ask for the rest"
        )
    if status.status == "failed" and not all(code in PASSING_PROBLEMS for code, _ in status.problems):
        return UserError(f"{batch} was refused: {problems}; check the model's name and that it has a batch API there")
    why = problems or f"the batch is {status.status}; {(line or {}).get('error')}"
    may_be_billed = status.status != "failed" and _was_run(line)
    return AttemptError("outage", "no reply in the batch", f"no reply in the batch: {why}", may_be_billed=may_be_billed)


def _response_of(endpoint: EndpointConfig, line: dict[str, Any]) -> ModelResponse:
    """The response in a line of an output or error file, as litellm would have brought it.

    Raises:
        openai.OpenAIError: the line tells of an error; of the class that a direct request would have raised.
    """
    response = line["response"]
    status, body = response.get("status_code"), response.get("body")
    if status != 200 or not isinstance(body, dict):
        raise_as_direct(endpoint, OpenAIError(int(status or 500), json.dumps(body)))
    try:
        return convert_to_model_response_object(
            response_object=tidied_value(body), model_response_object=ModelResponse()
        )
    except Exception as problem:  # litellm raises bare Exceptions for a body without choices
        raise_as_direct(endpoint, problem)


def _exchange_of(line: dict[str, Any]) -> Exchange:
    """What a line of an output or error file tells of the exchange behind it."""
    response = line["response"]
    status, body = response.get("status_code"), json.dumps(response.get("body"))
    return Exchange(0, was_sent=True, status=status if isinstance(status, int) else 500, body=body.encode())


def _was_run(line: dict[str, Any] | None) -> bool:
    """Whether a request may have been run, by the line of it that has no response, or by the lack of one."""
    error = (line or {}).get("error")
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return not any(word in code for word in NEVER_RUN_WORDS)

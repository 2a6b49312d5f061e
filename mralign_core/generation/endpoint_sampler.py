"""Sampling from an OpenAI-compatible server, through the client that annotation uses: limits, ledger, kept replies.

What is guaranteed. Every draw has a seed of its own (:func:`~.randomness.request_seed`), which is
sent with the request and is part of its digest: so draws differ, and the reply to each is found again after a crash
and never paid for twice. A server that heeds seeds repeats a draw as far as its arithmetic is the same, which on a
GPU depends on what else it is asked; one that ignores them gives independent draws that only the kept replies repeat.

Where the server gives token ids (vLLM does, and is asked to), these are the sample and ``token_source`` is
``sampled``. Elsewhere only text comes back, often with the thinking in a field of its own: the completion is then put
together in the family's layout and encoded with the local tokenizer (``encoded``); whitespace around the think tags is
that of the layout.

A reply without text, and one that the provider refused or filtered, is an empty completion: kept, scored like any
other, and counted in the log. A request that the server failed to answer while it answers others is a draw that
failed: neither right nor wrong, and asked for again by the next run.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from mralign_core.config import EndpointConfig
from mralign_core.config.sampling import VLLM_PROVIDER
from mralign_core.errors import ConfigError
from mralign_core.generation import Decoding, FollowUp, Sample, SampleRequest
from mralign_core.generation.answer_end import AnswerEnd
from mralign_core.generation.control_tokens import (
    decode_tokens,
    end_tokens,
    text_control_tokens,
    up_to_end_token,
    without_end_tokens,
)
from mralign_core.generation.prompts import (
    Prompt,
    chat_messages,
    refuse_control_tokens,
    render_prompt,
    render_request,
    require_chat_endpoint,
)
from mralign_core.generation.randomness import request_seed
from mralign_core.generation.segmenting import encode_completion
from mralign_core.llm.background import Crew
from mralign_core.llm.client import LLMClient
from mralign_core.llm.faults import with_last_words
from mralign_core.llm.offline import Message
from mralign_core.llm.reasoning import ReasoningReply, read_reasoning
from mralign_core.llm.request import Reach, Received, Request
from mralign_core.models.families import Family, opened_by_prompt
from mralign_core.schemas.outcomes import FAILED

logger = logging.getLogger("mralign_core.generation")

FILTERED = "content_filter"


class EndpointSampler:
    """A :class:`~mralign_core.generation.Sampler` over a chat endpoint; may be used from several threads at once.

    Args:
        endpoint: the server; its temperature and length limit are not used, the decoding's are.
        tokenizer: tokenizer of the model that the server serves.
        family: how the model thinks.
        instruction: text before `Question: …` in the prompt; empty sends the bare question.
        end_ids: tokens that end a completion.
        open_client: the client to send requests with, asked for at the start of every :meth:`draw`.
        ready: called there too: makes sure that the server has what it is to answer with, and says where it is, if the
            endpoint does not.
        longest: tokens that the server takes for a prompt and its reply together, once ``ready`` was called; 0 where
            that is not known.
        field: of the config, that names the endpoint.

    Raises:
        ConfigError: the endpoint can't be asked, has no price, or can't be asked for one of the thinking modes.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        family: Family,
        instruction: str = "",
        end_ids: frozenset[int],
        open_client: Callable[[], LLMClient],
        ready: Callable[[], Reach | None] = lambda: None,
        longest: Callable[[], int] = lambda: 0,
        field: str = "generate.endpoint",
    ) -> None:
        from mralign_core.llm import endpoint as api  # takes seconds: see its docstring

        api.check_endpoint(endpoint, field)
        require_chat_endpoint(tokenizer, family, instruction)
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.family = family
        self.instruction = instruction
        self.end_ids = end_ids
        self.open_client = open_client
        self.ready = ready
        self.longest = longest
        self.field = field
        self.answer_end = AnswerEnd(tokenizer, family)

    def has_room(self, request: SampleRequest, decoding: Decoding) -> bool:
        """Whether the prompt leaves room for ``decoding.max_new_tokens``, where the server says how much it takes.

        Raises:
            DataError: it spells out control tokens, which the server would obey.
        """
        self._refuse_control_tokens([request])
        return self._fits(request, decoding)

    def _fits(self, request: SampleRequest, decoding: Decoding) -> bool:
        longest = self.longest()
        return not longest or self._num_prompt_tokens(request) + decoding.max_new_tokens <= longest

    def _refuse_control_tokens(self, requests: Sequence[SampleRequest]) -> None:
        asked = [(one.question_id, one.question) for one in requests]
        refuse_control_tokens(self.tokenizer, asked, self.family, self.field)

    def _num_prompt_tokens(self, request: SampleRequest) -> int:
        return len(render_request(self.tokenizer, request, self.family, self.instruction).ids)

    def _refuse_too_long(self, requests: Sequence[SampleRequest], decoding: Decoding) -> None:
        """A server refuses such a prompt, which would count as an empty answer."""
        if too_long := next((request for request in requests if not self._fits(request, decoding)), None):
            raise ConfigError(
                f"question {too_long.question_id!r} has {self._num_prompt_tokens(too_long)} prompt tokens, and "
                f"max_new_tokens is {decoding.max_new_tokens}, but the server takes {self.longest()} in all: lower "
                "evaluate.max_new_tokens, or evaluate.retrieval.top_k where snippets are shown; start the server with "
                "a larger --max-model-len (vllm.max_model_len); or take the question out"
            )

    def draw(
        self, requests: Sequence[SampleRequest], decoding: Decoding, follow_up: FollowUp | None = None
    ) -> Iterator[tuple[SampleRequest, Sample]]:
        """Draw every request and those that follow, as many at once as the client lets through.

        Raises:
            ConfigError: a prompt leaves no room for ``decoding.max_new_tokens``.
            UserError: the endpoint refuses such requests, the budget is used up, or the server serves another model.
            EndpointUnavailableError: no attempt at a request got through. After either no request is sent any more,
                and those under way are received and kept.
        """
        self._refuse_control_tokens(requests)
        reach = self.ready()
        self._refuse_too_long(requests, decoding)
        client = self.open_client()
        crew: Crew[SampleRequest, Received] = Crew()

        def ask(request: SampleRequest) -> None:
            crew.start(request, partial(client.complete, self.chat_request(request, decoding, reach)))

        counts: Counter[str] = Counter()
        try:
            for request in requests:
                ask(request)
            while crew.num_under_way:
                with with_last_words(reach):
                    request, received = crew.next_ended()
                sample = self._sample(request, received)
                counts.update(drawn=1, failed=received.failed, empty=not (received.failed or sample.completion_ids))
                if follow_up and (following := follow_up(request, sample)):
                    ask(following)
                yield request, sample
        finally:
            crew.close(cancel=client.stopped_by is None)
            self._log(counts)

    def _log(self, counts: Mapping[str, int]) -> None:
        model, drawn = self.endpoint.model, counts["drawn"]
        if counts["empty"]:
            logger.warning("%d of %d replies of %s are empty", counts["empty"], drawn, model)
        if counts["failed"]:
            logger.warning(
                "%d of %d draws from %s failed and are neither right nor wrong", counts["failed"], drawn, model
            )

    def chat_request(self, request: SampleRequest, decoding: Decoding, reach: Reach | None = None) -> Request:
        """The request for a draw; ``reach`` is where the server is, if the endpoint does not say."""
        chat = chat_messages(request.question, request.thinking_mode, self.family, self.instruction)
        endpoint = self.endpoint.model_copy(update={"max_output_tokens": decoding.max_new_tokens})
        params: dict[str, Any] = {
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": request_seed(request, decoding.seed),
        }
        extra_body = self._decoding_fields(decoding) | chat.extra_body
        messages = [Message(role=message["role"], content=message["content"]) for message in chat.messages]
        params |= {"extra_body": extra_body} if extra_body else {}
        return Request(endpoint, messages, params, reach=reach)

    def _decoding_fields(self, decoding: Decoding) -> dict[str, Any]:
        """What the OpenAI protocol has no field for."""
        if not self.endpoint.model.startswith(VLLM_PROVIDER):
            return {"top_k": decoding.top_k} if decoding.top_k else {}
        # What a request leaves out, vLLM takes from the model's own generation config.
        return {
            "top_k": decoding.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }

    def _sample(self, request: SampleRequest, received: Received) -> Sample:
        """The sample that a reply makes, cut off where it has said its answer."""
        prompt = render_prompt(self.tokenizer, request.question, request.thinking_mode, self.family, self.instruction)
        if received.failed:
            return Sample(prompt.text, prompt.ids, [], "", FAILED, "encoded")
        cut_off = "length" if received.finish_reason == "length" else "stop"
        if received.finish_reason == FILTERED:
            return Sample(prompt.text, prompt.ids, [], "", cut_off, "encoded")
        reply = read_reasoning(received.response)
        if reply.completion_ids:
            return self._sampled(request, self._served_prompt(request, prompt, reply.prompt_ids), reply, cut_off)
        # Some servers leave end tokens in the text, and some write on behind them.
        own, ends = self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids)), end_tokens(self.tokenizer, self.end_ids)
        thinking = without_end_tokens(reply.thinking, ends)
        said = without_end_tokens(up_to_end_token(received.reply, own), ends)
        text = self._without_echo(self._written(thinking, said, request, prompt, is_cut=cut_off == "length"), request)
        end = self.answer_end.in_text(text, request.thinking_mode, prompt.text)
        ids, completion = encode_completion(
            self.tokenizer, text[:end], text_control_tokens(self.tokenizer, self.family)
        )
        return Sample(prompt.text, prompt.ids, ids, completion, "stop" if end else cut_off, "encoded")

    def _sampled(self, request: SampleRequest, prompt: Prompt, reply: ReasoningReply, cut_off: str) -> Sample:
        ids = reply.completion_ids
        drawn = ids[-1] if ids[-1] in self.end_ids else None
        ids = ids if drawn is None else ids[:-1]
        end = self.answer_end.in_tokens(ids, request.thinking_mode, prompt.text)
        completion, reason = decode_tokens(self.tokenizer, ids[:end]), "stop" if end else cut_off
        last = None if end else drawn  # what a model writes behind its answer is not read
        return Sample(prompt.text, prompt.ids, ids[:end], completion, reason, "sampled", last)

    def _served_prompt(self, request: SampleRequest, prompt: Prompt, served_ids: list[int]) -> Prompt:
        """The prompt that the server made of the messages, where it says so."""
        if not served_ids or served_ids == prompt.ids:
            return prompt
        text = decode_tokens(self.tokenizer, served_ids)
        if request.question.strip() not in text:
            raise ConfigError(
                f"{self.field}: {self.endpoint.model!r} at {self.endpoint.api_base} has another tokenizer than "
                f"model.path: with that one, its prompt for question {request.question_id!r} reads {text[-80:]!r}. "
                "Let model.path and the server name the same model"
            )
        return Prompt(text, served_ids)

    def _without_echo(self, text: str, request: SampleRequest) -> str:
        """The text without the beginning of the reply that we wrote, which llama.cpp repeats and vLLM does not."""
        begun, written = self.family.mode(request.thinking_mode).prefill.strip(), text.lstrip()
        return written.removeprefix(begun).lstrip() if begun and written.startswith(begun) else text

    def _written(self, thinking: str, reply: str, request: SampleRequest, prompt: Prompt, *, is_cut: bool) -> str:
        """The text that the model wrote, put together from the fields of a reply."""
        if not thinking:
            return reply
        if request.thinking_mode == "off" and not reply.strip():
            # Servers that look for a closing tag, which the prompt holds already, take the answer for thinking.
            return thinking
        answer = None if is_cut and not reply else reply.lstrip()
        opened = opened_by_prompt(prompt.text, self.family)
        return self.family.write_completion(thinking.strip(), answer, opened_by_prompt=opened)

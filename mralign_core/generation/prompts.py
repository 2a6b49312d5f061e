"""The prompt of a question in either thinking mode: in text and tokens, or as a chat request (App. F Fig. 11).

Decisions where the paper is silent: the instruction names the family's own place for thinking; the date that some
chat templates print is fixed, so that a run resumed on another day asks what it asked before; and control tokens that a
question spells out are text (:mod:`mralign_core.generation.control_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from mralign_core.errors import ConfigError, DataError
from mralign_core.generation import SampleRequest
from mralign_core.generation.control_tokens import control_tokens_in, encode_literally
from mralign_core.models.families import Family, opened_by_prompt
from mralign_core.models.families.recognising import PROBE
from mralign_core.models.families.rendering import apply_template, chat_of, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatRequest",
    "Prompt",
    "chat_messages",
    "opened_by_prompt",
    "refuse_control_tokens",
    "render_prompt",
    "render_request",
    "require_chat_endpoint",
]

TEMPLATE_REMEDY = (
    "Put a chat template for plain text (message.content as a string) into the model's folder, as chat_template.jinja, "
    "or name a text model"
)
SHOWN = 10
"""Questions that one message names."""
STAND_IN = "Which question stands here?"
"""Rendered in place of a question that spells out control tokens, so that no chat template can act on them."""


class Prompt(NamedTuple):
    """A rendered prompt and its token ids."""

    text: str
    ids: list[int]


class ChatRequest(NamedTuple):
    """A question for an OpenAI-compatible chat endpoint: its messages, and fields of the body that say the mode."""

    messages: list[dict[str, str]]
    extra_body: dict[str, Any]


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, thinking_mode: str, family: Family, instruction: str
) -> Prompt:
    """Render a question for one thinking mode.

    Args:
        tokenizer: tokenizer of the model, with or without a chat template.
        question: the question.
        thinking_mode: ``"on"`` or ``"off"``.
        family: how the model thinks.
        instruction: text before `Question: …`; empty sends the bare question.

    Returns:
        The prompt, ready to be continued by the model.

    Raises:
        ConfigError: the prompt leaves a think block open though thinking is off; the chat template leaves the question
            out, or fails; or the instruction spells out a control token.
    """
    spelled = control_tokens_in(tokenizer, question, family)
    text = prompt_text(tokenizer, STAND_IN if spelled else question, thinking_mode, family, instruction)
    if thinking_mode == "off" and opened_by_prompt(text, family):
        raise ConfigError(
            f"model.family {family.name!r} does not switch thinking off: the prompt still ends with "
            f"{family.think_open!r}. Name the family that the model belongs to, or describe it in a YAML file "
            "(docs/model-families.md)"
        )
    _require_question(tokenizer, text, STAND_IN if spelled else question)
    _refuse_in_instruction(tokenizer, instruction, family)
    if not spelled:
        return Prompt(text, tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template))
    head, _, tail = text.rpartition(STAND_IN)
    ids = encode_literally(tokenizer, question, spelled, head=head, tail=tail)
    return Prompt(head + question + tail, ids)


def render_request(
    tokenizer: PreTrainedTokenizerBase, request: SampleRequest, family: Family, instruction: str
) -> Prompt:
    """The prompt of a request, as :func:`render_prompt` makes it; what it refuses is told with the question's id."""
    try:
        return render_prompt(tokenizer, request.question, request.thinking_mode, family, instruction)
    except DataError as error:
        raise DataError(f"question {request.question_id!r}: {error}") from None


def _require_question(tokenizer: PreTrainedTokenizerBase, text: str, question: str) -> None:
    if question.strip() in text:
        return
    raise ConfigError(
        f"model.path {tokenizer.name_or_path!r}: its chat template makes a prompt without the question "
        f"{question.strip()!r:.80}: {text!r:.200}. {TEMPLATE_REMEDY}"
    )


def _refuse_in_instruction(tokenizer: PreTrainedTokenizerBase, instruction: str, family: Family) -> None:
    """The family's own tags may stand there: the instruction says where the thinking belongs."""
    own = "".join((*family.tags, family.think_words))
    if spelled := [name for name in control_tokens_in(tokenizer, instruction, family) if name not in own]:
        raise ConfigError(
            f"generate.instruction spells out {', '.join(map(repr, spelled))}, which this model takes for control "
            "tokens: take them out"
        )


def refuse_control_tokens(
    tokenizer: PreTrainedTokenizerBase, questions: Iterable[tuple[str, str]], family: Family, field: str
) -> None:
    """Refuse questions that only a sampler which encodes prompts itself can ask: a server would obey what they spell.

    Args:
        tokenizer: tokenizer of the model that the server serves.
        questions: id and text of each.
        family: how the model thinks.
        field: of the config, that names the server, such as ``generate.endpoint``.

    Raises:
        DataError: names the questions and their tokens, all at once.
    """
    spelled = {name: control_tokens_in(tokenizer, question, family) for name, question in questions}
    problems = [f"{name}: {', '.join(map(repr, tokens))}" for name, tokens in spelled.items() if tokens]
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError(
            f"{len(problems)} question(s) spell out control tokens, which the server of {field} would obey: "
            f"{'; '.join([*problems[:SHOWN], *more])}. Take them out, or use {field.partition('.')[0]}.sampler "
            "'transformers' or 'vllm', which encode them as text"
        )


def chat_messages(question: str, thinking_mode: str, family: Family, instruction: str) -> ChatRequest:
    """Ask for the same prompt at a chat endpoint, in the fields that vLLM and SGLang accept.

    Args:
        question: the question.
        thinking_mode: ``"on"`` or ``"off"``.
        family: how the model thinks; :func:`require_chat_endpoint` says whether an endpoint can be asked that.
        instruction: as in :func:`render_prompt`.

    >>> from mralign_core.models.families import named_family
    >>> chat_messages("Who?", "off", named_family("qwen3"), "").extra_body
    {'chat_template_kwargs': {'enable_thinking': False}}
    """
    mode = family.mode(thinking_mode)
    messages = chat_of(question, thinking_mode, family, instruction)
    extra_body: dict[str, Any] = {"chat_template_kwargs": dict(mode.template)} if mode.template else {}
    if mode.prefill:
        messages.append({"role": "assistant", "content": mode.prefill})
        extra_body |= {"continue_final_message": True, "add_generation_prompt": False}
    return ChatRequest(messages, extra_body)


def require_chat_endpoint(tokenizer: PreTrainedTokenizerBase, family: Family, instruction: str) -> None:
    """Check that a chat endpoint with this tokenizer's template makes the prompts that :func:`render_prompt` makes.

    Some templates cut the thinking out of a begun reply, or refuse it; a model without a template has no chat.

    Raises:
        ConfigError: a mode can't be asked for at a chat endpoint; names the mode and the remedy.
    """
    for thinking_mode in ("on", "off"):
        wanted = render_prompt(tokenizer, PROBE, thinking_mode, family, instruction).text
        problem = _chat_problem(tokenizer, chat_messages(PROBE, thinking_mode, family, instruction), wanted)
        if problem:
            raise ConfigError(
                f"sampler 'endpoint': thinking {thinking_mode!r} of model.family {family.name!r} can't be "
                f"asked for at a chat endpoint: {problem}. Use sampler 'vllm' or 'transformers', or serve the "
                "model with a chat template that has a switch and put the same template into the folder of model.path"
            )


def _chat_problem(tokenizer: PreTrainedTokenizerBase, request: ChatRequest, wanted: str) -> str:
    """Why a server would make another prompt of the request than the wanted one; empty where it makes the same."""
    if not tokenizer.chat_template:
        return "the tokenizer has no chat template"
    body = {"add_generation_prompt": True, **request.extra_body}
    try:
        served = apply_template(tokenizer, request.messages, body | body.pop("chat_template_kwargs", {}))
    except (ValueError, TemplateError) as error:
        return f"the chat template refuses a begun reply ({error!s:.100})"
    return "" if served == wanted else f"the chat template ends the prompt with {served[-40:]!r}"

"""Secrets taken out of text before it is printed, stored or sent anywhere.

Known secrets are the values of environment variables whose names say so (``OPENAI_API_KEY``, ``HF_TOKEN``, …); other
ones are known by their form. What is left says where something stood, not what.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

REDACTED = "[secret]"
FEWEST_CHARACTERS = 8
"""Of a variable's value that is taken for a secret; shorter ones would be found in ordinary words."""
_NAME = re.compile(
    r"(^|_)((API|ACCESS|SECRET|PRIVATE|SIGNING)?_?KEY|TOKEN|SECRET|PASS(WORD|WD|PHRASE)?|CREDENTIALS?|AUTH_STRING"
    r"|AUTHORIZATION|DSN|PAT|CONNECTION_URL)(_|$)",
    re.IGNORECASE,
)
"""Whole words of a name: TOKENIZER_NAME and MONKEY hold no secret."""
_FORMS = (
    (re.compile(r"(?<=://)[^\s/@'\"\\]+(?=@)"), REDACTED),
    (re.compile(r"(?i)\b(bearer|basic)[ +:]+[A-Za-z0-9._~+/-]{8,}=*"), rf"\1 {REDACTED}"),
    (
        re.compile(
            r"""(?ix)(
            (?:api[-_]?key|subscription[-_]key|access[-_]?key|access[-_]token|auth[-_]?token|client[-_]secret|password|passwd
              |x-amz-(?:signature|credential|security-token))["']?\s*[:=]\s*["']?
            |(?:[?&](?:key|token|sig|signature|secret|code)=))
            [^\s&"',;\\<>{}\[\]()]{6,}"""
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(?:sk|pk|rk|hf|ghp|gho|xox[abp]|glpat|AIza|pnu|pnb|gsk|r8)[-_][A-Za-z0-9_-]{16,}"), REDACTED),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}"), REDACTED),
    (re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{0,4096}"), REDACTED),
)


_TEXTS_OF_ERRORS = ("message", "filename", "filename2", "strerror", "problem", "reason", "body")
"""Attributes from which errors of libraries make their text."""


def redact(text: str) -> str:
    """The text without secrets.

    Example:
        >>> redact("GET https://ada:hunter22@host/v1?api-key=0123456789 failed")
        'GET https://[secret]@host/v1?api-key=[secret] failed'
    """
    known = _pattern_of(_secrets(os.environ))
    text = text if known is None else known.sub(REDACTED, text)
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    return text


def redacted(value: Any) -> Any:
    """JSON values without the secrets of the environment in any text, keys of mappings included.

    What only looks like a secret stays: a model may write of passwords, and what it wrote must stay as it is.
    """
    known = _pattern_of(_secrets(os.environ))
    return value if known is None else _redacted(value, known)


def _redacted(value: Any, known: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return known.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {_redacted(name, known): _redacted(inner, known) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner, known) for inner in value]
    return value


def redact_error(error: BaseException) -> bool:
    """Take secrets out of the messages of an error and of those that led to it, in place.

    Returns:
        Whether its own text is free of them now: some errors make theirs from what can't be changed.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.args = tuple(redact(part) if isinstance(part, str) else part for part in one.args)
        for name in _TEXTS_OF_ERRORS:
            if isinstance(text := getattr(one, name, None), str):
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(one, name, redact(text))
        if hasattr(one, "__notes__"):
            one.__notes__ = [redact(str(note)) for note in one.__notes__]
        waiting += [*getattr(one, "exceptions", ()), *filter(None, (one.__cause__, one.__context__))]
    return redact(str(error)) == str(error)


def print_redacted(error: BaseException) -> None:
    """Print an error that nobody caught, with its traceback, to standard error."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr, flush=True)  # noqa: T201


def redact_logs() -> None:
    """From now on no log record of this process holds a secret, whoever makes it, nor does what nobody catches."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return
    sys.excepthook = lambda kind, error, _: None if kind is KeyboardInterrupt else print_redacted(error)
    threading.excepthook = lambda failed: print_redacted(failed.exc_value) if failed.exc_value else None

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            return record  # logging itself reports a format that does not fit its arguments
        record.msg, record.args = redact(message), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)


def _secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    values = {value.strip() for name, value in environment.items() if _NAME.search(name)}
    return tuple(sorted(value for value in values if len(value) >= FEWEST_CHARACTERS and not value.startswith("/")))


@functools.lru_cache(maxsize=8)
def _pattern_of(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    forms = {form for secret in secrets for form in _forms(secret)}
    if not forms:
        return None
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))


def _forms(secret: str) -> Iterable[str]:
    """A secret as it stands, as URLs write it, and as HTTP's basic authentication does."""
    yield secret
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode()).decode()

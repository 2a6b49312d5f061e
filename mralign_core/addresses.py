"""Field types for URLs, paths and the root of a store: what a person may write, checked when the config is read.

A URL carries no secrets. Configs are stored with every artifact and every run, and printed; keys belong in the
environment.
"""

from __future__ import annotations

import os
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, WithJsonSchema

_URL_PATTERN = r"^(https?://[^\s@?#/]+(/[^\s@?#]*)?)?$"
"""The same, as far as a pattern says it: the form of a deployment refuses the rest before anything is stored."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def checked_url(value: str) -> str:
    """Return the URL of a server, or an empty text.

    Raises:
        ValueError: it is no http or https URL with a host, or carries a user, a password, a query or a fragment. The
            message does not repeat these parts.

    Example:
        >>> checked_url("http://127.0.0.1:8000/v1")
        'http://127.0.0.1:8000/v1'
    """
    if not value:
        return value
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError("a URL has no blanks and no invisible characters")
    if not re.match(r"https?://", value, re.IGNORECASE):
        meant = value.lstrip("/") if re.fullmatch(r"/*[\w.-]+(:\d+)?(/[^@?#]*)?", value) else "127.0.0.1:8000"
        raise ValueError(f"a URL starts with http:// or https://, such as http://{meant}")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("the URL's host or port can't be read: write http://host:port/path, port 0 to 65535") from None
    if "@" in parts.netloc:
        raise ValueError("a URL carries no user or password here: put credentials into the environment")
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise ValueError("a URL carries no ?query or #fragment here: put keys into the environment")
    if not host:
        raise ValueError("the URL names no host: write http://host:port/path")
    return value


def expanded(value: str) -> str:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    Raises:
        ValueError: there is no such home folder, or the path has a null character.
    """
    if "\0" in value:
        raise ValueError("a path has no null character")
    whole = os.path.expanduser(value) if value.startswith("~") else value
    if whole.startswith("~"):
        raise ValueError(f"there is no home folder {value.partition('/')[0]!r}: write the path whole")
    return whole


def checked_root(value: str) -> str:
    """Return the root of a store: a folder, ``file:///folder`` or ``s3://bucket/prefix``.

    Raises:
        ValueError: it is of another form; the message says what was probably meant.

    Example:
        >>> checked_root("s3://bucket/prefix")
        's3://bucket/prefix'
    """
    if not value.strip():
        raise ValueError("name a folder, or s3://bucket/prefix")
    match = _SCHEME.fullmatch(value)
    if not match:
        return expanded(value)
    scheme, slashes, rest = match[1].lower(), match[2], match[3]
    if scheme == "file":
        if len(slashes) not in (1, 3):
            raise ValueError(f"a folder is written file:///{rest.partition('/')[2]} with three slashes, or as its path")
        return f"/{rest}"
    if scheme not in ("s3", "s3a", "s3n"):
        raise ValueError(f"no store is known by {scheme + ':' + slashes!r}: name a folder, or s3://bucket/prefix")
    return _checked_s3(match[1] + ":" + slashes, rest)


def _checked_s3(start: str, rest: str) -> str:
    bucket, *folders = rest.rstrip("/").split("/")
    meant = "s3://" + "/".join(part for part in [bucket, *folders] if part)
    if "@" in bucket or "?" in rest or "#" in rest:
        raise ValueError("s3://bucket/prefix carries no credentials and no ?query: set the usual AWS variables")
    if start != "s3://" and bucket:
        raise ValueError(f"write {meant}")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{bucket!r} is no bucket's name: write s3://bucket/prefix")
    if "" in folders:
        raise ValueError(f"an empty folder name, '//', can't be told from none everywhere: write {meant}")
    if {".", ".."} & set(folders):
        raise ValueError("'.' and '..' mean nothing in a bucket: write s3://bucket/prefix")
    return meant


Url = Annotated[str, AfterValidator(checked_url), WithJsonSchema({"type": "string", "pattern": _URL_PATTERN})]
"""URL of a server, without secrets; empty for none."""
LocalPath = Annotated[str, AfterValidator(expanded)]
"""A path, or a name that is no path; ``~`` is the home folder."""
StoreRoot = Annotated[str, AfterValidator(checked_root)]
"""A folder, or ``s3://bucket/prefix``."""

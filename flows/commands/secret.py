"""The secret of an installation: who may talk to its servers, and which server is its own.

The secret is made at first use and never leaves its file. What a server asks for is a token, made from the secret and
a number that the server draws when it starts: what someone overhears is worth nothing once that server has ended.
Before a client sends the token to a port, the server there proves that it knows the secret, so that a program of
another user that took the port first is told nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from mralign_core.errors import UserError
from mralign_core.reporting.server_paths import IDENTITY_PATH

CHECKOUT = Path(__file__).resolve().parents[2]
SERVE_HOME = CHECKOUT / ".mralign" / "prefect"
"""``PREFECT_HOME`` of ``make serve``, unless it is told another."""
HOST = "127.0.0.1"
USER = "mralign"
SECRET_BYTES = 32
ANSWER_LIMIT_BYTES = 4096
ANSWER_TIMEOUT_S = 2.0


class SecretError(UserError):
    """The installation's secret can't be trusted or read; the message says what to do about its file."""


class OwnServer(NamedTuple):
    """A server that has proved that it is this installation's."""

    api_url: str
    token: str

    def environment(self) -> dict[str, str]:
        """Variables with which a process of ours, Prefect's command line too, may use it."""
        return {"PREFECT_API_URL": self.api_url, "PREFECT_API_AUTH_STRING": self.token, **past_proxies()}

    def link(self) -> str:
        """What to open in a browser. The token is behind ``#``, which browsers keep to themselves."""
        return f"{self.api_url.removesuffix('/api')}/mralign/enter#{self.token}"


def door_folder(home: Path) -> Path:
    """Where the secret lies, and what else is for this user's eyes only."""
    return home / "door"


def installation_secret(home: Path) -> bytes:
    """The secret under ``PREFECT_HOME``, made at first use.

    Args:
        home: that folder; it is made if need be.

    Raises:
        SecretError: its file belongs to someone else, can be read by others, or holds something else.
    """
    folder = door_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder, folder.lstat(), stat.S_ISDIR)
    path = folder / "secret"
    try:
        return _read(path)
    except FileNotFoundError:
        _create(path)
        return _read(path)


def token_of(secret: bytes, start: str) -> str:
    """What a server asks for: Prefect's "auth string", a user and a password.

    Args:
        secret: the installation's.
        start: what the server drew when it started.
    """
    return f"{USER}:{_mac(secret, 'token', start)}"


def proof_of(secret: bytes, challenge: str, start: str, address: str) -> str:
    """What only a server that knows the secret can answer to a challenge.

    Args:
        secret: the installation's.
        challenge: what the client drew.
        start: what the server drew when it started.
        address: ``host:port`` that the server was reached at. Without it, a program on one port could pass the
            challenge on to the real server on another.
    """
    return _mac(secret, "proof", challenge, start, address)


def recognise(api_url: str, homes: Iterable[Path]) -> OwnServer | None:
    """The server at a URL if it proves that it is this installation's; it is sent nothing worth keeping.

    Args:
        api_url: as in ``PREFECT_API_URL``; only one on this machine can be.
        homes: folders whose secret it may know.
    """
    parts = urlsplit(api_url)
    if parts.scheme != "http" or parts.hostname not in (HOST, "localhost"):
        return None
    address = f"{HOST}:{parts.port or 80}"
    challenge = secrets.token_hex(16)
    answer = _ask(f"http://{address}{IDENTITY_PATH}?challenge={challenge}")
    start, proof = answer.get("start"), answer.get("proof")
    if not isinstance(start, str) or not isinstance(proof, str):
        return None
    for home in homes:
        with suppress(FileNotFoundError):
            secret = _read(door_folder(home) / "secret")
            expected = proof_of(secret, challenge, start, address)
            if hmac.compare_digest(proof.encode(), expected.encode()):
                return OwnServer(f"http://{address}/api", token_of(secret, start))
    return None


def past_proxies() -> dict[str, str]:
    """Variables that keep requests to this machine, and the token in them, out of an HTTP proxy."""
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    names = [*filter(None, known.split(",")), "127.0.0.1", "localhost"]
    value = ",".join(dict.fromkeys(names))
    return {"NO_PROXY": value, "no_proxy": value}


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read; whoever reads it meanwhile sees all of it or nothing.

    Args:
        path: the file; it may exist.
        text: what to write.
    """
    temporary = _write_beside(path, text.encode())
    os.replace(temporary, path)


def _create(path: Path) -> None:
    """Make the secret. Of several processes that do so at once, the first one's stays."""
    temporary = _write_beside(path, secrets.token_hex(SECRET_BYTES).encode())
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def _write_beside(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _read(path: Path) -> bytes:
    """The secret in a file.

    Raises:
        FileNotFoundError: there is none.
        SecretError: it can't be trusted.
    """
    remedy = f"remove the folder {path.parent} and start `make serve` again"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SecretError(
            f"the secret of this installation, {path}, can't be read ({error.strerror}): {remedy}"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_private(path, os.fstat(file.fileno()), stat.S_ISREG)
        content = file.read(1024)
    with suppress(ValueError):
        secret = bytes.fromhex(content.decode("ascii", errors="replace"))
        if len(secret) == SECRET_BYTES:
            return secret
    raise SecretError(f"{path} does not hold a secret of {SECRET_BYTES} bytes: {remedy}")


def _check_private(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Pass if a file or folder is this user's alone.

    Raises:
        SecretError: it is not.
    """
    remedy = f"remove {path} and start again: a new secret will be made"
    if not is_kind(status.st_mode):
        raise SecretError(f"{path}, for the secret of this installation, is a link or something else: {remedy}")
    if status.st_uid != os.geteuid():
        raise SecretError(f"{path} belongs to another user (number {status.st_uid}): {remedy}")
    if status.st_mode & 0o077:
        mode = stat.filemode(status.st_mode)
        raise SecretError(f"{path} ({mode}) was open to other users, who may know the secret in it: {remedy}")


def _mac(secret: bytes, *parts: str) -> str:
    return hmac.new(secret, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def _ask(url: str) -> dict[str, Any]:
    """The JSON object at a URL; an empty one if there is none, or it is too long or too slow in coming."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    content = b""
    # Whoever listens there may be anyone: no proxy, no redirect, no credentials of a .netrc file. It is plain HTTP:
    # certificates, which take long to load, would not be looked at.
    client = httpx.Client(timeout=ANSWER_TIMEOUT_S, trust_env=False, verify=False)
    with suppress(httpx.HTTPError, ValueError), client:
        with client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as reply:
            for chunk in reply.iter_raw():
                content += chunk
                if len(content) > ANSWER_LIMIT_BYTES or time.monotonic() > deadline:
                    return {}
        answer = json.loads(content)
        return answer if reply.is_success and isinstance(answer, dict) else {}
    return {}

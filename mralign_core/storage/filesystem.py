"""The few file operations the store is made of, for a folder and for S3 alike, with retries on what can pass.

s3fs makes five attempts of its own around each of botocore's, so a bucket that is down costs 25 requests.
Both are set to one here, and :meth:`StoreFiles._attempt` is the only place that tries again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError

logger = logging.getLogger("mralign_core.storage")
Result = TypeVar("Result")

CHUNK_BYTES = 1 << 20
STALE_TEMPORARY_S = 86_400.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 8.0
FAILURES = (OSError, BotoCoreError, ClientError, HttpError, ResponseParserError)
"""What a file system or botocore raises when an operation fails."""
MISSING = (FileNotFoundError, NotADirectoryError)
PASSING = (
    ConnectionError,
    TimeoutError,
    BotoConnectionError,
    HTTPClientError,
    HttpError,
    IncompleteReadError,
    ResponseParserError,
)
PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"}
TAKEN_CODES = {"PreconditionFailed", "ConditionalRequestConflict"}
"""What S3 says to a writer who must not replace a file, and comes second."""
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
"""What a file system says that gives no file a second name."""


def can_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed later: after time-outs, broken connections, 5xx and SlowDown."""
    if reply := _error_reply(error):
        status = int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status == 429 or reply.get("Error", {}).get("Code", "") in PASSING_CODES
    return isinstance(error, PASSING)


def _error_reply(error: BaseException | None) -> dict[str, Any]:
    """The S3 error reply behind an exception that s3fs may have translated; empty when there is none."""
    while error is not None:
        if isinstance(error, ClientError):
            return dict(error.response)
        error = error.__cause__
    return {}


class StoreFiles:
    """Files under the root of a store, by path relative to it.

    Raises:
        StorageError: the root is neither a folder nor ``s3://bucket/prefix``. Every operation raises it too,
            when the store fails for another reason than a missing file.
    """

    def __init__(self, section: StorageConfig) -> None:
        root = section.root.removeprefix("file://")
        self.is_local = "://" not in root
        self._section = section
        self._fs: Any
        if self.is_local:
            self._base = Path(root).expanduser().resolve().as_posix()
            self.root_uri = f"file://{self._base}"
            self._fs = fsspec.filesystem("file", use_listings_cache=False)
        else:
            self._base = root.removeprefix("s3://").strip("/")
            self.root_uri = f"s3://{self._base}"
            if not root.startswith("s3://") or not self._base:
                raise StorageError(f"storage.root {section.root!r} must be a folder or s3://bucket/prefix")
            self._fs = _s3_filesystem(section)

    def uri(self, path: str) -> str:
        """The full address of a path."""
        return f"{self.root_uri}/{path}" if path else self.root_uri

    def local_path(self, path: str) -> Path | None:
        """The path on this machine; None when the store is remote."""
        return Path(self._base, path) if self.is_local else None

    def read(self, path: str) -> bytes | None:
        """A file's bytes, or None when there is no such file."""
        return self._unless_missing("read", path, lambda: self._fs.cat_file(self._full(path)))

    def sizes(self, path: str) -> dict[str, int]:
        """Size in bytes of every file under a folder, by its path inside the folder."""
        listing = self._attempt("list", path, lambda: self._fs.find(self._full(path), detail=True))
        start = len(self._full(path)) + 1
        return {name[start:]: int(info["size"]) for name, info in listing.items() if info["type"] == "file"}

    def names(self, path: str) -> list[str]:
        """Names directly under a folder, sorted; empty when there is no such folder."""
        names = self._unless_missing("list", path, lambda: self._fs.ls(self._full(path), detail=False))
        return sorted({name.rstrip("/").rpartition("/")[2] for name in names or []})

    def sha256(self, path: str) -> str | None:
        """Digest of a file's bytes, streamed; None when there is no such file."""
        return self._unless_missing("read", path, lambda: self._stream_digest(path))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write a small file atomically; when ``durable``, it also survives a loss of power."""
        with self._believing_what_is_there(path, hashlib.sha256(data).hexdigest()):
            if self.is_local:
                self._attempt("write", path, lambda: self._replace(path, lambda file: file.write_bytes(data), durable))
            else:
                self._attempt("write", path, lambda: self._fs.pipe_file(self._full(path), data))

    def upload(self, source: Path, path: str, sha256: str) -> None:
        """Copy a local file of known digest into the store, atomically."""
        with self._believing_what_is_there(path, sha256):
            if self.is_local:
                self._attempt("write", path, lambda: self._replace(path, lambda file: shutil.copyfile(source, file)))
            else:
                self._attempt("write", path, lambda: self._fs.put_file(str(source), self._full(path)))

    def download(self, path: str, target: Path, temporary_folder: Path) -> None:
        """Copy a file, if it is there, to a local path, atomically; both local paths must be on one disk."""
        temporary = temporary_folder / uuid.uuid4().hex
        temporary_folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._unless_missing("read", path, lambda: self._fs.get_file(self._full(path), str(temporary)))
            if temporary.exists():
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def check_bucket(self) -> None:
        """Prove that the bucket is there: some servers would create a mistyped one on the first write."""
        if not self.is_local:
            bucket = self._base.partition("/")[0]
            self._attempt("open", "", lambda: self._fs.call_s3("head_bucket", Bucket=bucket))

    def remove(self, path: str) -> None:
        """Remove one file; there may be none."""
        self._unless_missing("remove", path, lambda: self._fs.rm_file(self._full(path)))

    def remove_empty_folder(self, path: str) -> None:
        """Remove a folder of a local store and those in it, as far as no file is left; a bucket has no folders."""
        folder = self.local_path(path)
        for directory, _, _ in os.walk(folder, topdown=False) if folder else ():
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def remove_stale_temporaries(self) -> None:
        """Remove what writers killed more than a day ago left half-written in a local store."""
        folder = self.local_path("tmp")
        for path in folder.glob("*") if folder else ():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_TEMPORARY_S:
                    path.unlink()

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}"

    def _attempt(self, action: str, path: str, operation: Callable[[], Result]) -> Result:
        """Run an operation, again while its failure can pass; translate the last failure."""
        retrying = Retrying(
            stop=stop_after_attempt(self._section.max_attempts),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            retry=retry_if_exception(can_pass),
            before_sleep=lambda state: _log_retry(action, self.uri(path), state),
            reraise=True,
        )
        try:
            return retrying(operation)
        except FAILURES as error:
            raise StorageError(self._explain(action, path, error)) from error

    def _unless_missing(self, action: str, path: str, operation: Callable[[], Result]) -> Result | None:
        try:
            return self._attempt(action, path, operation)
        except StorageError as failure:
            if isinstance(failure.__cause__, MISSING):
                return None
            raise

    def _stream_digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(self._full(path), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _believing_what_is_there(self, path: str, sha256: str) -> Iterator[None]:
        """Take a failed write for done when the store holds its content: only the reply was lost."""
        arrived = False
        try:
            yield
        except StorageError as failure:
            with contextlib.suppress(StorageError):
                arrived = can_pass(failure.__cause__) and self.sha256(path) == sha256
            if not arrived:
                raise
            logger.warning("%s was written although the store reported a failure: %s", self.uri(path), failure)

    def _replace(self, path: str, fill: Callable[[Path], object], durable: bool = True) -> None:
        """Write a local file aside, then rename it: a reader sees all of it or nothing."""
        target, temporary = Path(self._full(path)), Path(self._base, "tmp", uuid.uuid4().hex)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            if durable:
                _flush(temporary)
            os.replace(temporary, target)
            if durable:
                _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _explain(self, action: str, path: str, error: BaseException) -> str:
        reply = _error_reply(error).get("Error", {})
        cause = f"{reply.get('Code', type(error).__name__)}: {reply.get('Message') or error}".rstrip(".")
        where = f" at {self._section.endpoint_url}" if self._section.endpoint_url else ""
        what = f"can't {action} {self.uri(path)}"
        return f"storage.root {self._section.root}{where}: {what}: {cause}. {self._remedy(error)}"

    def _remedy(self, error: BaseException) -> str:
        bucket = self._base.partition("/")[0]
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an AWS profile."
        if isinstance(error, ProfileNotFound):
            return "AWS_PROFILE names a profile that no AWS config file has: correct it, or unset it."
        if isinstance(error, ParamValidationError):
            return f"Give storage.root a valid bucket name; {bucket!r} is none."
        if can_pass(error):
            tries = self._section.max_attempts
            return f"Tried {tries} time(s): check storage.endpoint_url and that its server is up; run again."
        if self.is_local:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            return "Free some space there." if full else "Set storage.root to a folder you can write to."
        if isinstance(error, FileNotFoundError):
            return f"Create the bucket {bucket!r}, or set storage.root to one that exists."
        if isinstance(error, PermissionError):
            return f"Check the AWS credentials and that they may read, write and list bucket {bucket!r}."
        return "Check storage.root and storage.endpoint_url."

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file, atomically, unless there is one: of several writers at once, one is told True.

        Args:
            path: relative to the root.
            data: unlike what any other writer would write there.
        """
        if self.is_local:
            is_new = self._attempt("create", path, lambda: self._link(path, data))
        else:
            is_new = self._put_new(path, data)
        return is_new or self.read(path) == data  # the reply to an earlier attempt may have been lost

    def _put_new(self, path: str, data: bytes) -> bool:
        bucket, _, key = self._full(path).partition("/")
        put = {"Bucket": bucket, "Key": key, "Body": data, "IfNoneMatch": "*"}
        try:
            self._attempt("create", path, lambda: self._fs.call_s3("put_object", **put))
        except StorageError as failure:
            if _error_reply(failure.__cause__).get("Error", {}).get("Code") not in TAKEN_CODES:
                raise
            return False
        return True

    def ages(self, path: str) -> dict[str, float]:
        """Seconds from each file's last change to the newest one's, by the store's clock, for the files of a folder."""
        listing = self._attempt("list", path, lambda: self._fs.find(self._full(path), detail=True))
        start = len(self._full(path)) + 1
        changed = {name[start:]: _changed(info) for name, info in listing.items() if info["type"] == "file"}
        return {name: max(changed.values()) - at for name, at in changed.items()}

    def _link(self, path: str, data: bytes) -> bool:
        """Write a local file aside, then give it its name, which fails where the name is taken."""
        target, temporary = Path(self._full(path)), Path(self._base, "tmp", uuid.uuid4().hex)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _write_new(target, data)
        finally:
            temporary.unlink(missing_ok=True)
        return True


def _s3_filesystem(section: StorageConfig) -> Any:
    config = {
        "connect_timeout": section.connect_timeout_s,
        "read_timeout": section.read_timeout_s,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Many S3-compatible servers refuse botocore's newer checksums; the sha256 is checked anyway.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if section.endpoint_url:
        config["s3"] = {"addressing_style": "path"}
    files = fsspec.filesystem(
        "s3",
        endpoint_url=section.endpoint_url or None,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.retries = 1
    return files


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes) -> bool:
    """Write a file unless there is one, where a file can't have two names; a reader may see it half-written."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _changed(info: dict[str, Any]) -> float:
    """When a listed file was last changed, in seconds of the store's clock."""
    return float(info["mtime"] if "mtime" in info else info["LastModified"].timestamp())


def _log_retry(action: str, uri: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("attempt %d to %s %s failed, trying again: %r", state.attempt_number, action, uri, error)

"""The few file operations the store is made of, for a folder and for S3 alike, with patience for what can pass.

s3fs makes five attempts of its own around each of botocore's, so a bucket that is down costs 25 requests.
Both are set to one here, and :meth:`StoreFiles._attempt` is the only place that tries again; only parts of a large file
that is sent are tried again by s3fs too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from botocore.exceptions import NoCredentialsError, ParamValidationError, PartialCredentialsError, ProfileNotFound

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError, StoreUnavailableError
from mralign_core.storage.deleting import NotOursError, remove_empty_folders, remove_file
from mralign_core.storage.digests import file_sha256
from mralign_core.storage.patience import (
    FAILURES,
    LOOK_EVERY_S,
    IncompleteError,
    Patience,
    can_pass,
    error_reply,
    is_stopping,
)
from mralign_core.storage.scratch import part_file, stale_parts, sweep_parts

logger = logging.getLogger("mralign_core.storage")
Result = TypeVar("Result")

COPY_BYTES = 1 << 20
PART_BYTES = 50 << 20
"""Larger files are sent and fetched in parts of this size, as s3fs does."""
PARTS_AT_ONCE = 8
REQUESTS_AT_ONCE = 16
"""Connections to a bucket, and small files that are read at a time."""
PART_ATTEMPTS = 4
MOST_READINGS = 5
"""Of a file that comes with other bytes each time."""
LAST_REQUEST_S = 5.0
"""For a request under way when the process is about to end."""
MISSING = (FileNotFoundError, NotADirectoryError)
TAKEN_CODES = {"PreconditionFailed", "ConditionalRequestConflict"}
"""What S3 says to a writer who must not replace a file, and comes second."""
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
"""What a file system says that gives no file a second name."""
RENEWABLE = {
    "ExpiredToken": "The credentials have expired: renew them and run again.",
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it and run again.",
}
"""Codes of S3 that stand for what only the user can set right."""


class Content(NamedTuple):
    """Bytes, by their number and digest."""

    size: int
    sha256: str


class Listed(NamedTuple):
    """A file as a listing has it: bytes, and when it was last changed, in seconds of the store's clock."""

    size: int
    changed_at: float


class BegunUpload(NamedTuple):
    """A large file whose parts are in a bucket, and which is none yet: its writer is at work, or was killed."""

    path: str
    token: str
    """Names it among the uploads of the path."""
    size: int
    """Bytes of its parts."""
    active_at: float
    """When its newest part came, or where there is none it was begun, by the store's clock."""


class StoreFiles:
    """Files under the root of a store, by path relative to it.

    Args:
        section: where the store is and how patient to be with it.
        brief_s: for what must not wait: the most seconds for a connection, for a reply, and of going on trying. Nothing
            is said of a store that is away meanwhile.

    Raises:
        StorageError: by any operation, when the store fails for another reason than a missing file.
        StoreUnavailableError: by any operation, when the failure could pass but did not for as long as
            ``storage.patience_s``.
    """

    def __init__(self, section: StorageConfig, brief_s: float | None = None) -> None:
        if brief_s is not None:
            limits = {name: min(getattr(section, name), brief_s) for name in ("connect_timeout_s", "read_timeout_s")}
            section = section.model_copy(update=limits)
        root = section.root
        self.is_local = "://" not in root
        self._section = section
        self._fs: Any
        if self.is_local:
            self._base = Path(root).resolve().as_posix()
            self.root_uri = f"file://{self._base}"
            self._fs = fsspec.filesystem("file", use_listings_cache=False)
        else:
            self._base = root.removeprefix("s3://").strip("/")
            self.root_uri = f"s3://{self._base}"
            self._fs = _s3_filesystem(section)
        patience_s = section.patience_s if brief_s is None else min(section.patience_s, brief_s)
        self._patience = Patience(f"storage.root {section.root}", patience_s, is_quiet=brief_s is not None)

    def uri(self, path: str) -> str:
        """The full address of a path."""
        return f"{self.root_uri}/{path}" if path else self.root_uri

    def local_path(self, path: str) -> Path | None:
        """The path on this machine; None when the store is remote."""
        return Path(self._base, path) if self.is_local else None

    def read(self, path: str) -> bytes | None:
        """A small file's bytes as they came, or None when there is no such file."""
        return self.read_as(path, bytes)

    def read_as(self, path: str, parse: Callable[[bytes], Result]) -> Result | None:
        """What a small file says, or None when there is no such file.

        Args:
            path: of the file.
            parse: makes sense of its bytes. What it refuses is read again, as long as it may be that the store holds
                other bytes than came.

        Raises:
            ValueError: what ``parse`` raised, of bytes that are the store's.
        """

        def attempt() -> Result:
            chunks: list[bytes] = []
            came = self._digest(path, chunks.append)
            try:
                return parse(b"".join(chunks))
            except ValueError:
                self._prove_that_it_is_stored(path, came)
                raise

        return self._unless_missing("read", path, attempt)

    def sizes(self, path: str) -> dict[str, int]:
        """Size in bytes of every file under a folder, by its path inside the folder."""
        return {name: int(info["size"]) for name, info in self._listing(path).items()}

    def listed(self, path: str) -> dict[str, Listed]:
        """Every file under a folder, by its path inside the folder."""
        return {name: Listed(int(info["size"]), _changed(info)) for name, info in self._listing(path).items()}

    def ages(self, path: str) -> dict[str, float]:
        """Seconds from each file's last change to the newest one's, by the store's clock, for the files of a folder."""
        changed = {name: file.changed_at for name, file in self.listed(path).items()}
        newest = max(changed.values(), default=0.0)
        return {name: newest - at for name, at in changed.items()}

    def names(self, path: str) -> list[str]:
        """Names directly under a folder, sorted; empty when there is no such folder."""
        names = self._unless_missing("list", path, lambda: self._call("ls", self._full(path), detail=False))
        return sorted({name.rstrip("/").rpartition("/")[2] for name in names or []})

    def beginning(self, path: str, start: str) -> Iterator[str]:
        """Names directly under a folder that begin so, sorted, and none but the name itself where there is one.

        A bucket is asked for these alone, a page at a time as they are taken; of a local folder all names are read.
        """
        if not self.is_local:
            yield from self._pages_beginning(path, start)
        elif start and os.path.lexists(self._full(f"{path}/{start}")):
            yield start
        else:
            yield from sorted(name for name in self._names_here(path) if name.startswith(start))

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        name = path.rpartition("/")[2]
        if self.is_local:
            return bool(self._attempt("read", path, lambda: os.path.isfile(self._full(path))))
        return next(self._pages_beginning(path.rpartition("/")[0], name), "") == name

    def holds(self, path: str, sha256: str) -> bool:
        """Whether a file is there and its bytes, streamed, have this digest."""

        def attempt() -> bool:
            came = self._digest(path)
            if came.sha256 != sha256:
                self._prove_that_it_is_stored(path, came)
            return came.sha256 == sha256

        return bool(self._unless_missing("read", path, attempt))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write a small file atomically; when ``durable``, it also survives a loss of power."""
        with self._believing_what_is_there(path, hashlib.sha256(data).hexdigest()):
            if self.is_local:
                self._attempt("write", path, lambda: self._replace(path, lambda file: file.write_bytes(data), durable))
            else:
                self._attempt("write", path, lambda: self._call("pipe_file", self._full(path), data))

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

    def flush(self, path: str) -> None:
        """Have a file that is there survive a loss of power, as what is in a bucket does."""
        if self.is_local:
            target = Path(self._full(path))
            for written in (target, target.parent):  # the folder has its name
                self._attempt("write", path, functools.partial(_flush, written))

    def upload(self, source: Path, path: str, sha256: str) -> None:
        """Copy a local file of known digest into the store, atomically."""
        with self._believing_what_is_there(path, sha256):
            if self.is_local:
                self._attempt("write", path, lambda: self._replace(path, lambda file: shutil.copyfile(source, file)))
            else:
                files = self._fs if source.stat().st_size < 2 * PART_BYTES else self._patient_with_parts
                self._attempt("write", path, lambda: self._await(files._put_file(str(source), self._full(path))))

    def download(self, path: str, target: Path, temporary_folder: Path, content: Content) -> None:
        """Copy a file, if it is there with this content, to a local path, atomically.

        Args:
            path: of the file.
            target: where to.
            temporary_folder: for the file before it is whole, on the same disk as the target.
            content: what its bytes must be.
        """
        info = self._unless_missing("read", path, lambda: self._call("info", self._full(path)))
        if info is None or int(info["size"]) != content.size:
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            came = None
            for _ in range(MOST_READINGS):
                with part_file(temporary_folder) as temporary:
                    self._fetch(path, temporary, content.size)
                    before, came = came, file_sha256(temporary)
                    if came == content.sha256:
                        os.replace(temporary, target)
                    if came in (content.sha256, before):
                        return
        except OSError as error:  # of the copy; those of the store are translated
            raise StorageError(
                f"can't keep a copy of {self.uri(path)}: {error}. Make {temporary_folder.parent} a folder that you can "
                "write to, with space for it."
            ) from error

    def tags(self, path: str) -> dict[str, str]:
        """The bucket's mark of each file's contents (ETag), which changes whenever they do, by path inside a folder."""
        return {name: str(info["ETag"]).strip('"') for name, info in self._listing(path).items()}

    def check_bucket(self) -> None:
        """Prove that the bucket is there: some servers would create a mistyped one on the first write."""
        if not self.is_local:
            bucket = self._base.partition("/")[0]
            self._attempt("open", "", lambda: self._call("call_s3", "head_bucket", Bucket=bucket))

    def remove(self, path: str) -> None:
        """Remove one file; there may be none.

        Raises:
            StorageError: a symbolic link stands on the way to it; a folder behind a link is not the store's.
        """
        if self.is_local:
            self._unless_missing("remove", path, lambda: remove_file(Path(self._base), path))
        else:
            self._unless_missing("remove", path, lambda: self._call("rm_file", self._full(path)))

    def remove_empty_folder(self, path: str) -> None:
        """Remove a folder of a local store and those in it, as far as no file is left; a bucket has no folders."""
        if self.is_local:
            self._unless_missing("remove", path, lambda: remove_empty_folders(Path(self._base), path))

    def remove_stale_temporaries(self) -> None:
        """Remove what killed writers left half-written in a local store."""
        if self.is_local:
            try:
                sweep_parts(Path(self._base), "tmp")
            except OSError as error:
                logger.warning("%s is not swept: %s", self.uri("tmp"), error)

    def stale_temporaries(self) -> list[str]:
        """Names of what :meth:`remove_stale_temporaries` would remove."""
        return stale_parts(Path(self._base), "tmp") if self.is_local else []

    def begun_uploads(self) -> list[BegunUpload]:
        """Uploads in parts of artifacts' files that were begun in a bucket and not ended; of very many, the first."""
        if self.is_local:
            return []
        bucket, _, folder = self._full("").partition("/")
        request = {"Bucket": bucket, "Prefix": f"{folder}artifacts/"}
        page = self._attempt("list", "", lambda: self._call("call_s3", "list_multipart_uploads", **request))
        found = []
        for each in page.get("Uploads") or ():
            parts = self._parts(each["Key"], each["UploadId"])
            active_at = max(at.timestamp() for at in [each["Initiated"], *(part["LastModified"] for part in parts)])
            size = sum(part["Size"] for part in parts)
            found.append(BegunUpload(each["Key"].removeprefix(folder), each["UploadId"], size, active_at))
        return found

    def abort_upload(self, path: str, token: str) -> None:
        """Remove the parts of an upload that was begun; it may be over."""
        self._unless_missing("remove", path, lambda: self._of_upload("abort_multipart_upload", self._full(path), token))

    def patiently(self, path: str, operation: Callable[[], Result]) -> Result:
        """What an operation on local copies of the store's files returns, with the patience of the store's own."""
        return self._attempt("read", path, operation)

    @functools.cached_property
    def _patient_with_parts(self) -> Any:
        """The bucket, for large files: a part that fails is sent again at once, and not the file."""
        files = _s3_filesystem(self._section)
        files.retries = PART_ATTEMPTS
        return files

    def _parts(self, full_key: str, token: str) -> list[dict[str, Any]]:
        """All parts of an upload that have come; none of one that is over."""
        path = f"{self._base.partition('/')[0]}/{full_key}"
        found: list[dict[str, Any]] = []
        marker: dict[str, Any] = {}
        while True:
            ask = functools.partial(self._of_upload, "list_parts", path, token, **marker)
            page = self._unless_missing("list", full_key, ask) or {}
            found += page.get("Parts") or []
            if not page.get("IsTruncated"):
                return found
            marker = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def _of_upload(self, action: str, full_path: str, token: str, **options: Any) -> Any:
        bucket, _, key = full_path.partition("/")
        return self._call("call_s3", action, Bucket=bucket, Key=key, UploadId=token, **options)

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}"

    def _attempt(self, action: str, path: str, operation: Callable[[], Result]) -> Result:
        """Run an operation, again while its failure can pass; translate the last failure."""
        try:
            return self._patience.run(f"{action} {self.uri(path)}", operation)
        except FAILURES as error:
            kind = StoreUnavailableError if can_pass(error) else StorageError
            raise kind(self._explain(action, path, error)) from error

    def _unless_missing(self, action: str, path: str, operation: Callable[[], Result]) -> Result | None:
        try:
            return self._attempt(action, path, operation)
        except StorageError as failure:
            if isinstance(failure.__cause__, MISSING):
                return None
            raise

    def _listing(self, path: str) -> dict[str, dict[str, Any]]:
        """What the store says about every file under a folder, by its path inside the folder."""
        # Of a local folder that can't be read, find would say that it is empty.
        options = {"on_error": _raise_unless_missing} if self.is_local else {}
        listing = self._attempt("list", path, lambda: self._call("find", self._full(path), detail=True, **options))
        start = len(self._full(path)) + 1
        return {name[start:]: info for name, info in listing.items() if info["type"] == "file"}

    def _names_here(self, path: str) -> list[str]:
        """Names directly under a local folder; none where there is no such folder."""
        return self._unless_missing("list", path, lambda: os.listdir(self._full(path))) or []

    def _pages_beginning(self, path: str, start: str) -> Iterator[str]:
        """:meth:`beginning` in a bucket."""
        bucket, _, folder = self._full(path).partition("/")
        request = {"Bucket": bucket, "Prefix": f"{folder}/{start}", "Delimiter": "/"}
        while True:
            page = self._attempt("list", path, lambda: self._call("call_s3", "list_objects_v2", **request))
            full = [entry["Prefix"].rstrip("/") for entry in page.get("CommonPrefixes", ())]
            full += [entry["Key"] for entry in page.get("Contents", ())]
            names = sorted(name[len(folder) + 1 :] for name in full if len(name) > len(folder) + 1)
            if start and start in names:
                yield start
                return
            yield from names
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the file system; one that waits for a bucket ends when this thread is interrupted."""
        if self.is_local:
            return getattr(self._fs, name)(*args, **kwargs)
        return self._await(getattr(self._fs, f"_{name}")(*args, **kwargs))

    def _await(self, work: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(work, self._fs.loop)
        grace_s = LAST_REQUEST_S
        try:
            while not concurrent.futures.wait([future], LOOK_EVERY_S).done:
                grace_s -= LOOK_EVERY_S if is_stopping() else 0.0
                if grace_s <= 0:
                    raise TimeoutError("no answer, and the process is about to end")
            return future.result()
        finally:
            future.cancel()

    def _digest(self, path: str, take: Callable[[bytes], object] = len) -> Content:
        """Read a file through; ``take`` is given its bytes piece by piece."""
        digest, sizes = hashlib.sha256(), []

        def add(chunk: bytes) -> None:
            digest.update(chunk)
            sizes.append(len(chunk))
            take(chunk)

        self._read_through(path, add)
        return Content(sum(sizes), digest.hexdigest())

    def _read_through(self, path: str, take: Callable[[bytes], object]) -> None:
        if not self.is_local:
            self._await(self._stream(path, take))
            return
        with open(self._full(path), "rb") as file:
            while chunk := file.read(COPY_BYTES):
                take(chunk)

    async def _stream(self, path: str, take: Callable[[bytes], object], **options: str) -> None:
        # Not cat_file, which asks for the size first, nor open, which asks for each block.
        bucket, _, key = self._full(path).partition("/")
        reply = await self._fs._call_s3("get_object", Bucket=bucket, Key=key, **options)
        async with reply["Body"] as body:
            while chunk := await body.read(COPY_BYTES):
                take(chunk)

    def _fetch(self, path: str, temporary: Path, size: int) -> None:
        """Fetch a file of known size in parts, several at a time; a part that came whole is not fetched again."""
        parts = [(start, min(start + PART_BYTES, size)) for start in range(0, size, PART_BYTES)]
        whole: set[int] = set()
        with temporary.open("r+b") as file:
            for first in range(0, len(parts), PARTS_AT_ONCE):
                batch = parts[first : first + PARTS_AT_ONCE]

                def fetch(batch: list[tuple[int, int]] = batch) -> None:
                    missing = [part for part in batch if part[0] not in whole]
                    self._await(self._fetch_parts(path, file.fileno(), missing, whole, is_all=len(parts) == 1))

                self._attempt("read", path, fetch)

    async def _fetch_parts(
        self, path: str, descriptor: int, parts: list[tuple[int, int]], whole: set[int], *, is_all: bool
    ) -> None:
        async def fetch(start: int, end: int) -> None:
            at = start

            def write(chunk: bytes) -> None:
                nonlocal at
                at += os.pwrite(descriptor, chunk, at)

            await self._stream(path, write, **({} if is_all else {"Range": f"bytes={start}-{end - 1}"}))
            if at != end:
                raise IncompleteError(f"{at - start} bytes of {end - start} came")
            whole.add(start)

        for failure in await asyncio.gather(*(fetch(*part) for part in parts), return_exceptions=True):
            if failure is not None:
                raise failure

    def _prove_that_it_is_stored(self, path: str, came: Content) -> None:
        """Return if what came, and is not what it should be, is what the store holds: then it is damaged there.

        Raises:
            IncompleteError: the store holds more or less, or other bytes come the next time.
        """
        if self.is_local:
            return
        size = int(self._call("info", self._full(path))["size"])
        if came.size != size:
            raise IncompleteError(f"{came.size} bytes of {size} came")
        if self._digest(path) != came:
            raise IncompleteError("other bytes come each time")

    @contextlib.contextmanager
    def _believing_what_is_there(self, path: str, sha256: str) -> Iterator[None]:
        """Take a failed write for done when the store holds its content: only the reply was lost."""
        arrived = False
        try:
            yield
        except StorageError as failure:
            with contextlib.suppress(*FAILURES):  # one look: patience is over
                arrived = can_pass(failure.__cause__) and self._digest(path).sha256 == sha256
            if not arrived:
                raise
            logger.warning("%s was written although the store reported a failure: %s", self.uri(path), failure)

    def _replace(self, path: str, fill: Callable[[Path], object], durable: bool = True) -> None:
        """Write a local file aside, then rename it: a reader sees all of it or nothing."""
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_file(Path(self._base, "tmp")) as temporary:
            fill(temporary)
            if durable:
                _flush(temporary)
            os.replace(temporary, target)
            if durable:
                _flush(target.parent)

    def _put_new(self, path: str, data: bytes) -> bool:
        bucket, _, key = self._full(path).partition("/")
        put = {"Bucket": bucket, "Key": key, "Body": data, "IfNoneMatch": "*"}
        try:
            self._attempt("create", path, lambda: self._call("call_s3", "put_object", **put))
        except StorageError as failure:
            if error_reply(failure.__cause__).get("Error", {}).get("Code") not in TAKEN_CODES:
                raise
            return False
        return True

    def _link(self, path: str, data: bytes) -> bool:
        """Write a local file aside, then give it its name, which fails where the name is taken."""
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_file(Path(self._base, "tmp")) as temporary:
            temporary.write_bytes(data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return _write_new(target, data)
        return True

    def _explain(self, action: str, path: str, error: BaseException) -> str:
        reply = error_reply(error).get("Error", {})
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
        if isinstance(error, NotOursError):
            return f"Put a folder in place of {error.path}, or remove it yourself."
        if can_pass(error):
            check = "the disk or network folder" if self.is_local else "storage.endpoint_url and that its server is up"
            return (
                f"Went on trying for {self._section.patience_s:g} s (storage.patience_s): check {check}; run again to "
                "go on where this ended."
            )
        if (code := error_reply(error).get("Error", {}).get("Code", "")) in RENEWABLE:
            return RENEWABLE[code]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "Free some space there." if self.is_local else "Free some space on this machine's disk."
        if self.is_local:
            return "Set storage.root to a folder you can write to."
        if isinstance(error, FileNotFoundError):
            return f"Create the bucket {bucket!r}, or set storage.root to one that exists."
        if isinstance(error, PermissionError):
            return f"Check the AWS credentials and that they may read, write and list bucket {bucket!r}."
        return "Check storage.root and storage.endpoint_url."


def _s3_filesystem(section: StorageConfig) -> Any:
    import aiobotocore.session
    from s3fs.core import set_custom_error_handler

    config = {
        "connect_timeout": section.connect_timeout_s,
        "read_timeout": section.read_timeout_s,
        "max_pool_connections": REQUESTS_AT_ONCE,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Many S3-compatible servers refuse botocore's newer checksums; the sha256 is checked anyway.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if section.endpoint_url:
        config["s3"] = {"addressing_style": "path"}
    session = aiobotocore.session.AioSession()
    session.register_component("data_loader", _shared_loader(session.get_config_variable("data_path")))
    session.register("before-parse.s3.ListObjectsV2", _refuse_empty_listing)
    files = fsspec.filesystem(
        "s3",
        endpoint_url=section.endpoint_url or None,
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
        session=session,
    )
    files.retries = 1
    set_custom_error_handler(can_pass)  # what s3fs tries again, where it does
    return files


@functools.cache
def _shared_loader(data_path: str | None) -> Any:
    """What reads how S3 is spoken to, a megabyte of JSON, once a process; botocore would for each session."""
    import botocore.loaders

    return botocore.loaders.create_loader(data_path)


def _refuse_empty_listing(response_dict: dict[str, Any], **_: Any) -> None:
    """Take a listing without a body for a failure of the server; botocore takes it for an empty folder."""
    if response_dict["status_code"] == 200 and not response_dict["body"]:
        response_dict["status_code"] = 500


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, MISSING):
        raise error


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

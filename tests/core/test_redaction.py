"""No secret is printed, logged or stored: known by the environment, or by their form."""

import io
import json
import logging
import subprocess
import sys
import time
import traceback

import pytest

from mralign_core.config import StorageConfig
from mralign_core.errors import ConfigError, DataError
from mralign_core.llm.faults import EndpointUnavailableError
from mralign_core.redaction import redact, redact_error, redact_logs, redacted
from mralign_core.storage import ArtifactStore
from tasks.engine.task import artifact
from tests.pocket_store import small_config

SECRET = "correct-horse/battery+9"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("MY_PROVIDER_API_KEY", SECRET)
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")


@pytest.mark.parametrize(
    "text",
    [
        f"401: no such key {SECRET}.",
        "GET /v1?x=1&k=correct-horse%2Fbattery%2B9",
        "Authorization: Basic Y29ycmVjdC1ob3JzZS9iYXR0ZXJ5Kzk=",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        "https://ada:correct-horse@host/v1",
        "https://correct-horse@host/v1",
        "https://host/v1?api-key=correct-horse",
        "https://host/v1?key=correct-horse&x=1",
        "https://b.s3.amazonaws.com/x?X-Amz-Signature=correct-horse01&X-Amz-Credential=correct-horse",
        '{"api_key": "correct-horse"}',
        "password=correct-horse",
        "Incorrect API key provided: sk-proj-correct-horse0123456789",
        "hf_correcthorse0123456789abcd",
        "AKIACORRECTHORSE9999 is disabled".replace("CORRECTHORSE9999", "ABCDEFGHIJKLMNOP"),
        "authorization: Bearer correct-horse",
    ],
)
def test_secrets_of_every_form_are_taken_out(text):
    clean = redact(text)
    assert "[secret]" in clean
    for part in ("correct-horse", "correcthorse", "ABCDEFGHIJKLMNOP", "Y29ycmVjd"):
        assert part not in clean


@pytest.mark.parametrize(
    "text",
    [
        "Tokens: 8192, max_output_tokens=8192, key 'generate' stands twice, key: artifacts/draws/3f9a",
        "Unexpected token: something is missing",
        "the password of the city is unknown",
        "http://127.0.0.1:8000/v1 gave no reply in 5 attempt(s)",
        "/tmp/agent",
        "mail ada@example.org about https://host/a@b",
        "0123456789abcdef" * 4,
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text


def test_errors_that_users_see_hold_none():
    for kind in (ConfigError, DataError, EndpointUnavailableError):
        assert SECRET not in str(kind(f"401 for {SECRET}"))


def test_an_error_of_a_library_and_its_causes_are_cleaned_in_place():
    error, cause = RuntimeError("outer", 3, f"Bearer {SECRET}"), KeyError(f"key {SECRET}")
    error.__cause__, cause.__cause__ = cause, error  # a circle
    redact_error(error)
    assert SECRET not in repr(error) + repr(cause)
    assert error.args[:2] == ("outer", 3)


def test_no_log_record_holds_one_nor_its_traceback():
    redact_logs()
    redact_logs()
    stream = io.StringIO()
    logger = logging.getLogger("some.library")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.warning("sent %s to %s", SECRET, "host")
        try:
            raise RuntimeError(f"Bearer {SECRET}")
        except RuntimeError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    assert SECRET not in stream.getvalue()
    assert "sent [secret] to host" in stream.getvalue() and "RuntimeError: Bearer [secret]" in stream.getvalue()


def test_nothing_that_the_store_describes_or_records_holds_one(tmp_path):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("x")
    store.publish(
        "estimate",
        "k",
        tmp_path / "data",
        parents=[],
        fingerprint={"api_base": f"https://host?key={SECRET}"},
        counts={"failures": [f"401 {SECRET}"]},
    )
    store.put_json("replies/aa", {"response": {"error": [f"Bearer {SECRET}"]}, SECRET: 1})
    stored = "".join(path.read_text() for path in (tmp_path / "store").rglob("*.json"))
    assert SECRET not in stored and json.dumps(SECRET)[1:-1] not in stored
    assert stored.count("[secret]") == 4


def test_values_other_than_text_stay():
    assert redacted({"a": [1, None, True, 2.5, ("x", SECRET)]}) == {"a": [1, None, True, 2.5, ["x", "[secret]"]]}


def test_data_that_only_looks_like_a_secret_stays():
    assert redacted({"reply": "password: hunter2222, Bearer abcdefghij", "key": SECRET}) == {
        "reply": "password: hunter2222, Bearer abcdefghij",
        "key": "[secret]",
    }


class MadeFromParts(Exception):
    """Makes its text from what can't be changed, as pydantic's does."""

    def __str__(self):
        return f"input {SECRET}"


class OfLibrary(RuntimeError):
    def __init__(self, message):
        super().__init__()
        self.message = message


def test_errors_that_keep_their_text_elsewhere():
    by_file = OSError(2, "missing", f"/data/{SECRET}")
    of_library = OfLibrary(f"Incorrect API key: {SECRET}")
    group = ExceptionGroup("several", [ValueError(SECRET)])
    group.add_note(f"sent {SECRET}")
    for error in (by_file, of_library, group):
        assert redact_error(error)
    assert SECRET not in str(by_file) + of_library.message + repr(group.exceptions) + "".join(group.__notes__)
    assert not redact_error(MadeFromParts())


def test_a_task_raises_nothing_that_holds_one(monkeypatch, tmp_path):
    monkeypatch.setattr("tasks.engine.graph._ARTIFACTS", {})

    @artifact("toy", stage="prepare", options=("error",), fields=lambda _: {})
    def fail(making):
        raise making.options["error"]

    config = small_config(tmp_path)
    for error, kind in (
        (MadeFromParts(), RuntimeError),
        (ValueError(SECRET), ValueError),
        (OSError(2, SECRET), OSError),
    ):
        with pytest.raises(kind) as caught:
            fail.run_here(config, error)
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_what_nobody_catches_is_printed_without_secrets():
    script = f"from mralign_core.redaction import redact_logs; redact_logs(); raise RuntimeError('Bearer {SECRET}')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "RuntimeError: Bearer [secret]" in done.stderr and SECRET not in done.stderr


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("OPENAI_API_KEY", True),
        ("HF_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("DB_PASSWORD", True),
        ("PREFECT_API_AUTH_STRING", True),
        ("TOKENIZER_NAME", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MONKEY", False),
        ("PATH_TO_KEYBOARD", False),
    ],
)
def test_which_variables_hold_secrets(monkeypatch, name, is_secret):
    monkeypatch.setenv(name, "Qwen/Qwen3-0.6B-x")
    assert ("[secret]" in redact("loading Qwen/Qwen3-0.6B-x")) == is_secret


def test_long_text_of_any_form_takes_little_time():
    started = time.process_time()
    for text in (
        "-eyJaaaaaaaa" * 30_000,
        "://" * 100_000,
        "bearer " * 50_000,
        "password = " * 30_000,
        "sk-a" * 100_000,
    ):
        redact(text)
    assert time.process_time() - started < 5

"""The installation's secret, and how a client knows its own server, on real files and sockets."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from flows.commands import secret
from flows.commands.door import Door
from flows.commands.secret import SecretError, installation_secret, proof_of, recognise, token_of
from mralign_core.reporting.server_paths import IDENTITY_PATH
from tests.asgi_server import serving
from tests.chat_server import PatientServer

START = "5" * 32


def test_the_secret_is_made_once_for_this_user_alone(tmp_path):
    former = os.umask(0)
    try:
        made = installation_secret(tmp_path / "home")
    finally:
        os.umask(former)
    folder = tmp_path / "home" / "door"
    assert len(made) == 32
    assert installation_secret(tmp_path / "home") == made
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert os.stat(folder / "secret").st_mode & 0o777 == 0o600
    assert installation_secret(tmp_path / "other") != made


def test_processes_that_start_together_agree_on_it(tmp_path):
    at_once = threading.Barrier(16)

    def make(_):
        at_once.wait()
        return installation_secret(tmp_path)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(make, range(16)))) == 1
    assert [path.name for path in (tmp_path / "door").iterdir()] == ["secret"]


def open_file(folder):
    (folder / "secret").chmod(0o640)


def open_folder(folder):
    folder.chmod(0o755)


def link(folder):
    (folder / "secret").rename(folder.parent / "elsewhere")
    (folder / "secret").symlink_to(folder.parent / "elsewhere")


def cut_off(folder):
    (folder / "secret").write_text("00ff")


def empty(folder):
    (folder / "secret").write_text("")


def binary(folder):
    (folder / "secret").write_bytes(b"\xff\x00" * 32)


@pytest.mark.parametrize("spoil", [open_file, open_folder, link, cut_off, empty, binary])
def test_a_secret_that_can_not_be_trusted_is_refused_with_a_remedy(tmp_path, spoil):
    installation_secret(tmp_path)
    spoil(tmp_path / "door")
    with pytest.raises(SecretError, match=r"(?s)door.*remove"):
        installation_secret(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_secret_that_another_user_laid_there_is_refused(tmp_path):
    installation_secret(tmp_path)
    os.chown(tmp_path / "door" / "secret", 65534, 65534)
    with pytest.raises(SecretError, match="another user"):
        installation_secret(tmp_path)


def test_each_start_has_a_token_of_its_own_that_does_not_tell_the_secret():
    made = bytes(range(32))
    tokens = {token_of(made, start) for start in ("0" * 32, "1" * 32)}
    assert len(tokens) == 2
    assert all(made.hex() not in token and token.startswith("mralign:") for token in tokens)


@pytest.fixture
def home(tmp_path):
    installation_secret(tmp_path)
    return tmp_path


async def nothing(*_):
    """What no request reaches."""
    raise AssertionError("a request went through the door")


@pytest.fixture
def own(home):
    """The API of a server of this installation, with nothing behind its door."""
    with serving(lambda port: Door(nothing, port, installation_secret(home), START)) as port:
        yield f"http://127.0.0.1:{port}/api"


def test_the_own_server_is_recognised_and_its_token_known(own, home):
    for url in (own, own.replace("127.0.0.1", "localhost")):
        found = recognise(url, [home])
        assert found == (own, token_of(installation_secret(home), START))


def test_a_server_of_another_installation_is_not(own, tmp_path):
    installation_secret(tmp_path / "other")
    assert recognise(own, [tmp_path / "other", tmp_path / "none"]) is None


class Impostor(PatientServer):
    """Takes the port first, and writes down all it is told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Reply)
        self.heard: list[str] = []
        self.status = (200, "OK")
        self.headers_sent: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}/api"
        self.answer: Callable[[str], Iterable[bytes]] = lambda challenge: [b"{}"]


class _Reply(BaseHTTPRequestHandler):
    server: Impostor

    def do_GET(self):
        self.server.heard.append(self.requestline + str(self.headers))
        self.send_response(*self.server.status)
        for name, value in self.server.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        for chunk in self.server.answer(parse_qs(urlsplit(self.path).query)["challenge"][0]):
            self.wfile.write(chunk)

    def log_message(self, *_):
        pass


@pytest.fixture
def impostor(own):
    server = Impostor()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def relay(own):
    import httpx

    def answer(challenge):
        return [httpx.get(own.removesuffix("/api") + IDENTITY_PATH, params={"challenge": challenge}).content]

    return answer


def drip(_):
    while True:
        time.sleep(0.2)
        yield b" "


ANSWERS = {
    "healthy": lambda _: [b"true"],
    "a guess": lambda _: [b'{"start": "' + START.encode() + b'", "proof": "' + b"0" * 64 + b'"}'],
    "not text": lambda _: [b'{"start": 3, "proof": ["x"]}'],
    "not ASCII": lambda _: ['{"start": "é", "proof": "é"}'.encode()],
    "nothing": lambda _: [],
    "no end": lambda _: iter(lambda: b" " * 65536, b""),
    "a drip": drip,
}


@pytest.mark.parametrize("says", ANSWERS)
def test_a_program_that_took_the_port_first_is_told_nothing(impostor, home, says):
    impostor.answer = ANSWERS[says]
    began = time.monotonic()
    assert recognise(impostor.url, [home]) is None
    assert time.monotonic() - began < 3 * secret.ANSWER_TIMEOUT_S
    (heard,) = impostor.heard
    assert "authorization" not in heard.lower()
    assert installation_secret(home).hex() not in heard


def test_a_program_that_passes_the_challenge_on_to_the_real_server_is_not_believed(impostor, own, home):
    impostor.answer = relay(own)
    assert recognise(impostor.url, [home]) is None
    assert len(impostor.heard) == 1


def test_a_proof_is_worth_nothing_for_another_challenge(impostor, own, home):
    address = urlsplit(impostor.url).netloc
    old = proof_of(installation_secret(home), "0" * 32, START, address)
    impostor.answer = lambda _: [f'{{"start": "{START}", "proof": "{old}"}}'.encode()]
    assert recognise(impostor.url, [home]) is None


def test_a_redirect_is_not_followed(impostor, own, home):
    impostor.status = (302, "Found")
    impostor.headers_sent = {"Location": own.removesuffix("/api") + IDENTITY_PATH}
    assert recognise(impostor.url, [home]) is None


def test_a_listener_that_says_nothing_is_waited_for_briefly(home):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert recognise(f"http://127.0.0.1:{silent.getsockname()[1]}/api", [home]) is None
        assert time.monotonic() - began < 3 * secret.ANSWER_TIMEOUT_S


def test_a_server_elsewhere_is_not_even_asked(home, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was made"))
    for url in ("https://127.0.0.1:4200/api", "http://example.com/api", "http://127.0.0.1.example.com:4200/api", ""):
        assert recognise(url, [home]) is None


def test_requests_to_this_machine_go_past_a_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet")
    assert secret.past_proxies()["no_proxy"] == "intranet,127.0.0.1,localhost"
    monkeypatch.setenv("NO_PROXY", "*")
    assert secret.past_proxies()["NO_PROXY"].startswith("*")

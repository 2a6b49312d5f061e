"""Claims on a folder and on a real S3 server: one maker at a time, and no maker that is gone is waited for."""

import asyncio
import dataclasses
import http.client
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest
from chat_server import PatientServer

from mralign_core.config import StorageConfig
from mralign_core.errors import StorageError, StoreUnavailableError
from mralign_core.storage import ArtifactStore
from mralign_core.storage import claims as module
from mralign_core.storage.claims import Contest, Holder
from mralign_core.storage.filesystem import StoreFiles
from tests.faulty_s3 import FaultyS3
from tests.seaweedfs import BUCKET
from tests.unconditional_store import ignore_conditions

NAME = "annotations-shard/3f9a"
OWNER = """
import json, sys, time
from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
store = ArtifactStore(StorageConfig.model_construct(**json.loads(sys.argv[1])))  # a lease too short for a config
with store.claims("the other").hold(sys.argv[2], lambda: None) as turn:
    print("claimed", flush=True)
    sys.stdin.readline()
    time.sleep(0.5)
print("lost" if turn.claim.is_lost else "kept", flush=True)
"""


@pytest.fixture
def section(section):
    return section.model_copy(update={"claim_lease_s": 1.0})


@pytest.fixture
def folder(tmp_path):
    return StorageConfig(root=str(tmp_path / "store")).model_copy(update={"claim_lease_s": 1.0})


@pytest.fixture
def patient(section):
    """A store of each kind in which no request is too slow: SeaweedFS may take seconds where writers meet."""
    return section.model_copy(update={"claim_lease_s": 60.0})


def nothing():
    return None


def claims_of(section, run="test"):
    return ArtifactStore(section).claims(run)


def claimed(section):
    """What lies in the store's folder of claims."""
    return [name for name in StoreFiles(section).sizes("claims") if not name.startswith("probes/")]


def claim_elsewhere(section, name=NAME, lease_s=1.0):
    """A claim whose owner, on another machine, is gone."""
    holder = {"run": "lost", "host": "elsewhere", "pid": 1, "lease_s": lease_s, "owner": "x", "place": "elsewhere"}
    StoreFiles(section).write(f"claims/{name}.1", json.dumps({**holder, "beat": 7}).encode())


def wait_until(is_so, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_waited_for(section, seconds):
    """Whether nobody takes over a claim that others watch for so long."""
    contest, end = Contest(claims_of(section), NAME), time.monotonic() + seconds
    while time.monotonic() < end:
        if contest.attempt() is not None:
            return False
        time.sleep(0.1)
    return True


def won(contest):
    """The claim, which the first attempt wins."""
    claim = contest.attempt()
    assert claim
    return claim


def file_of(folder, name):
    """Where a claim is kept on this machine's disk."""
    path = StoreFiles(folder).local_path(f"claims/{name}")
    assert path
    return path


def start_owner(section, name=NAME):
    """Another process that holds a claim until it is sent a line."""
    command = [sys.executable, "-c", OWNER, section.model_dump_json(), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "claimed\n"
    return process


def at_once(number, call):
    """The results of calls that start together in threads, by their number."""
    results, barrier = [None] * number, threading.Barrier(number)

    def run(index):
        barrier.wait()
        results[index] = call(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Work:
    """Something that threads make, each after it has looked for it; knows who made it, and how many at a time."""

    def __init__(self):
        self.makers, self.at_work, self.most_at_work = [], 0, 0

    def find(self):
        return self.makers[0] if self.makers else None

    def make(self, section, maker, fails=False):
        with claims_of(section).hold(NAME, self.find) as turn:
            if turn.found is not None:
                return turn.found
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            time.sleep(0.002)
            self.at_work -= 1
            if fails:
                raise ValueError("it can't be made")
            self.makers.append(maker)
            return maker


def test_of_twenty_that_start_at_once_exactly_one_makes_it_in_every_of_200_rounds(folder, monkeypatch):
    monkeypatch.setattr(module, "FIRST_POLL_S", 0.01)
    for seed in range(200):
        work, rng = Work(), random.Random(seed)
        delays = [rng.choice([0, 0, 0.001, 0.003]) for _ in range(20)]

        def make(index, work=work, delays=delays):
            time.sleep(delays[index])
            return work.make(folder, index)

        assert at_once(20, make) == [work.makers[0]] * 20
        assert len(work.makers) == work.most_at_work == 1
    assert not claimed(folder)


def test_on_each_kind_of_store_exactly_one_of_many_makes_it(patient):
    stores = {index: claims_of(patient) for index in range(8)}
    for number in range(4):
        wins = at_once(8, lambda index, number=number: Contest(stores[index], f"shard/{number}").attempt())
        assert sum(win is not None for win in wins) == 1
        next(win for win in wins if win).release()
    assert not claimed(patient)


def test_a_claim_that_is_renewed_is_waited_for_however_long(section):
    section = section.model_copy(update={"claim_lease_s": 4.0})
    claim, heard = won(Contest(claims_of(section, "first"), NAME)), []

    def on_wait(holder):
        heard.append((time.monotonic(), holder))
        if heard[-1][0] - heard[0][0] > 10.0:
            claim.release()

    with claims_of(section).hold(NAME, nothing, on_wait) as turn:
        assert turn.claim
        assert turn.is_alone
    assert heard[-1][0] - heard[0][0] > 3.0
    assert not claim.is_lost
    assert {(holder.run, holder.pid) for _, holder in heard} == {("first", os.getpid())}
    assert str(heard[0][1]) == f"run 'first' (process {os.getpid()} on {heard[0][1].host})"


def test_who_waits_finds_what_was_made_and_claims_nothing(section):
    claim, made = won(Contest(claims_of(section), NAME)), []
    threading.Timer(0.5, lambda: made.append("it")).start()
    with claims_of(section).hold(NAME, lambda: made[0] if made else None) as turn:
        assert (turn.found, turn.claim) == ("it", None)
    claim.release()
    assert not claimed(section)


def test_exactly_one_of_many_takes_over_from_an_owner_that_is_gone(section):
    claim_elsewhere(section)
    made: list[int] = []
    stores = {index: claims_of(section) for index in range(8)}

    def take(index):
        with stores[index].hold(NAME, lambda: made[0] if made else None) as turn:
            if turn.found is None:
                made.append(index)
            return turn.found is None

    assert sum(at_once(8, take)) == 1
    assert not claimed(section)


def test_an_owner_elsewhere_is_given_its_whole_lease(folder):
    claim_elsewhere(folder, lease_s=2.0)
    began = time.monotonic()
    with claims_of(folder).hold(NAME, nothing):
        assert 2.0 <= time.monotonic() - began < 20.0


def test_an_owner_on_this_machine_that_was_killed_is_not_waited_for(folder):
    long = folder.model_copy(update={"claim_lease_s": 600})
    process = start_owner(long)
    process.kill()  # not waited for yet: a zombie is gone too
    began = time.monotonic()
    with claims_of(long).hold(NAME, nothing) as turn:
        assert turn.claim.generation == 2
        assert time.monotonic() - began < 60.0
    process.wait()
    assert not claimed(long)


def test_an_owner_that_was_stopped_for_longer_than_its_lease_does_no_harm(section):
    process = start_owner(section)
    process.send_signal(signal.SIGSTOP)
    try:
        with claims_of(section).hold(NAME, nothing) as turn:
            process.send_signal(signal.SIGCONT)
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "lost\n"
            time.sleep(1.0)
            assert turn.is_alone
            assert claimed(section) == [f"{NAME}.2"]
    finally:
        process.kill()
        process.wait()
    assert not claimed(section)


def test_what_an_owner_left_that_was_killed_after_it_had_finished_is_removed(folder):
    process = start_owner(folder)
    made: list[str] = []

    def find():
        if not made:
            process.kill()
            process.wait()
            made.append("it")
            return None
        return "it"

    with claims_of(folder).hold(NAME, lambda: find() and made[0]) as turn:
        assert turn.found == "it"
    assert not claimed(folder)


def test_what_is_found_is_not_made_again_where_a_claim_that_was_left_cannot_be_removed(folder, monkeypatch):
    process = start_owner(folder)

    def refuse(*_):
        raise StorageError("a write-once store")

    def find():
        process.kill()
        process.wait()
        return "it"

    monkeypatch.setattr(StoreFiles, "remove", refuse)
    with claims_of(folder).hold(NAME, find) as turn:
        assert turn == ("it", None)


def test_an_error_lets_others_have_it(folder):
    work, long = Work(), folder.model_copy(update={"claim_lease_s": 60.0})
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(ValueError, match="can't be made"):
            work.make(long, 0, fails=True)
    assert work.make(long, 1) == 1
    assert time.monotonic() - began < 30.0


def test_when_the_maker_fails_one_that_waits_tries(folder):
    work, turns = Work(), iter([True] + 9 * [False])
    lock = threading.Lock()

    def make(index):
        with lock:
            fails = next(turns)
        try:
            return work.make(folder, index, fails=fails)
        except ValueError:
            return "failed"

    results = at_once(10, make)
    assert len(work.makers) == work.most_at_work == 1
    assert set(results) <= {"failed", work.makers[0]}


def test_time_in_which_nobody_looked_does_not_count(folder, monkeypatch):
    claim_elsewhere(folder, lease_s=60)
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    contest = Contest(claims_of(folder), NAME)
    for _ in range(4):  # the store was away for ten minutes between the looks
        assert contest.attempt() is None
        clock[0] += 600.0
    looks = 0
    while (claim := contest.attempt()) is None:
        clock[0] += 2.0
        looks += 1
    assert looks == (60 - 4 * module.LONGEST_GAP_S) / 2.0
    claim.release()


def test_a_short_lease_is_not_over_at_the_first_look_after_an_outage(folder, monkeypatch):
    claim_elsewhere(folder, lease_s=6)
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    contest = Contest(claims_of(folder), NAME)
    for _ in range(module.BEATS_PER_LEASE):
        assert contest.attempt() is None
        clock[0] += 600.0


def test_what_holds_a_claim_never_waits_for_another(folder):
    with claims_of(folder).hold(NAME, nothing), claims_of(folder).hold(NAME, nothing) as inner:
        assert inner == (None, None)


def test_a_wait_ends_on_a_signal(folder):
    claim_elsewhere(folder, lease_s=600)

    def interrupt(*_):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), claims_of(folder).hold(NAME, nothing):
            pass
    finally:
        signal.signal(signal.SIGALRM, former)
    assert time.monotonic() - began < 60.0


def test_a_thread_that_waits_does_not_keep_a_process_that_ends(folder):
    claim_elsewhere(folder, lease_s=600)
    script = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
def work():
    section = StorageConfig.model_construct(**json.loads(sys.argv[1]))
    with ArtifactStore(section).claims("x").hold(sys.argv[2], lambda: None):
        print("made")
future = ThreadPoolExecutor().submit(work)
time.sleep(1)
"""
    command = [sys.executable, "-c", script, folder.model_dump_json(), NAME]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_store_that_takes_no_claims_is_worked_in_all_the_same(folder, tmp_path, caplog):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "claims").write_text("not a folder")
    for name in ("shard/1", "shard/2"):
        with claims_of(folder).hold(name, nothing) as turn:
            assert turn == (None, None)
            assert not turn.is_alone
    assert sum("can't claim work" in record.message for record in caplog.records) == 1


def claim_that_says(**values):
    return json.dumps({**vars(Holder()), **values}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"run": 3}',
        claim_that_says(lease_s=1e12, pid=-4),
        claim_that_says(lease_s=math.inf),
        claim_that_says(lease_s=math.nan),
        claim_that_says(pid=math.inf),
    ],
    ids=["empty", "cut", "list", "nested", "short", "long", "endless", "no number", "no process"],
)
def test_a_claim_that_cannot_be_read_expires_too(folder, content, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LEASE_S", 1.0)
    StoreFiles(folder).write(f"claims/{NAME}.1", content)
    with claims_of(folder).hold(NAME, nothing) as turn:
        assert turn.claim.generation == 2


def test_a_claim_says_what_its_work_reads_and_one_of_an_earlier_version_nothing_of_it(folder):
    with claims_of(folder).hold(NAME, nothing, reads=["artifacts/model/m/0123456789abcdef"]):
        data = file_of(folder, f"{NAME}.1").read_bytes()
    holder = Holder.read(data)
    assert holder.reads == ("artifacts/model/m/0123456789abcdef",)
    values = {name: value for name, value in json.loads(data).items() if name != "reads"}
    assert Holder.read(json.dumps(values).encode()) == dataclasses.replace(holder, reads=())


def test_claims_of_other_work_are_not_mistaken_for_ones_own(folder):
    for name in (f"{NAME}0", f"{NAME}.5", "annotations-shard/3f9", "annotations/3f9a"):
        claim_elsewhere(folder, name, lease_s=600)
    claim = won(Contest(claims_of(folder), NAME))
    assert claim.generation == 1
    claim.release()


def test_claims_that_were_not_renewed_for_a_day_are_swept(folder, monkeypatch):
    monkeypatch.setattr(module, "_swept", set())
    for name, age_s in {"shard/old": 100_000, "shard/young": 50_000}.items():
        claim_elsewhere(folder, name)
        os.utime(file_of(folder, f"{name}.1"), (time.time() - age_s,) * 2)
    foreign = file_of(folder, "shard/somebodys.1")
    foreign.write_text("not a claim")
    os.utime(foreign, (0, 0))
    claim = won(Contest(claims_of(folder), NAME))  # the newest of all, by which the others are old
    wait_until(lambda: "shard/old.1" not in claimed(folder))
    claim.release()
    assert set(claimed(folder)) == {"shard/young.1", "shard/somebodys.1"}


def test_no_renewal_waits_for_a_sweep(folder, monkeypatch):
    monkeypatch.setattr(module, "_swept", set())

    def slow(*_):
        time.sleep(4.0)
        return {}

    monkeypatch.setattr(StoreFiles, "ages", slow)
    claim = won(Contest(claims_of(folder), NAME))
    assert is_waited_for(folder, 2.5)
    claim.release()


class TestAges:
    def test_of_many_files_take_no_longer_than_their_listing(self, folder):
        for number in range(3000):
            file_of(folder, "shard").mkdir(parents=True, exist_ok=True)
            file_of(folder, f"shard/{number}.1").touch()
        files, began = StoreFiles(folder), time.process_time()
        files.sizes("claims")
        listed, began = time.process_time() - began, time.process_time()
        ages = files.ages("claims")
        assert len(ages) == 3000
        assert min(ages.values()) == 0.0
        assert time.process_time() - began < 3 * listed + 0.05

    def test_of_a_folder_that_cannot_be_read_are_not_none(self, folder, monkeypatch):
        claim_elsewhere(folder)

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(StorageError, match="Permission denied"):
            StoreFiles(folder).ages("claims")


class TestAServerThatIgnoresConditions:
    @pytest.fixture(autouse=True)
    def _ignoring(self, monkeypatch):
        ignore_conditions(monkeypatch)

    def test_is_found_out(self, folder):
        assert not module._probe(StoreFiles(folder))
        assert not list(StoreFiles(folder).sizes("claims"))

    @pytest.mark.parametrize("seed", range(5))
    def test_exactly_one_of_many_wins_there_too(self, folder, seed):
        rng = random.Random(seed)
        delays = [rng.uniform(0, 0.3) for _ in range(12)]

        def attempt(index):
            time.sleep(delays[index])
            return Contest(claims_of(folder), NAME).attempt()

        wins = at_once(12, attempt)
        assert sum(win is not None for win in wins) == 1
        assert [name for name in claimed(folder) if "~" in name] == []
        next(win for win in wins if win).release()

    def test_a_bid_of_one_that_was_killed_keeps_nobody_waiting_for_ever(self, folder):
        StoreFiles(folder).write(f"claims/{NAME}.1~0", b"")
        with claims_of(folder).hold(NAME, nothing) as turn:
            assert turn == (None, None)


def test_a_real_server_keeps_conditions(section):
    assert module._probe(StoreFiles(section))


def test_creating_says_who_was_first(section):
    files = StoreFiles(section)
    assert files.create("claims/a/b.1", b"mine")
    assert not files.create("claims/a/b.1", b"yours")
    assert files.read("claims/a/b.1") == b"mine"
    assert files.create("claims/a/b.1", b"mine")  # the reply to an earlier attempt was lost


def test_a_folder_without_links_takes_claims_too(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    files = StoreFiles(folder)
    assert files.create("claims/a/b.1", b"mine")
    assert not files.create("claims/a/b.1", b"yours")
    assert files.read("claims/a/b.1") == b"mine"


def test_a_store_that_fails_is_not_taken_for_one_that_refuses(folder, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "claims").write_text("not a folder")
    with pytest.raises(StorageError, match="can't create"):
        StoreFiles(folder).create("claims/a/b.1", b"mine")


def test_an_event_loop_can_claim_requests_that_other_runs_ask_too(patient):
    """Each of two clients asks the same requests, in other orders, with fewer threads than requests."""
    replies, asked = {}, []

    async def ask(claims, digest, pool):
        loop, contest = asyncio.get_running_loop(), Contest(claims, f"replies/{digest}")
        while digest not in replies:
            claim = await loop.run_in_executor(pool, contest.attempt)
            if claim is None:
                await asyncio.sleep(0.02)
                continue
            if digest not in replies:
                asked.append(digest)
                await asyncio.sleep(0.05)
                replies[digest] = "reply"
            await loop.run_in_executor(pool, claim.release)

    async def ask_all(digests):
        with ThreadPoolExecutor(2) as pool:
            await asyncio.gather(*(ask(claims_of(patient), digest, pool) for digest in digests))

    digests = [f"{number:02}" for number in range(12)]
    at_once(2, lambda index: asyncio.run(ask_all(digests[:: (1, -1)[index]])))
    assert sorted(asked) == digests
    assert not claimed(patient)


class FaultyProxy(PatientServer):
    """Forwards requests to the S3 server; each PUT first takes the next of ``faults``, a status or a lost reply."""

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), _Forwarder)
        self.target = target.removeprefix("http://")
        self.faults = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Forwarder(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = ""
        if self.command == "PUT":
            fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault.isdigit():
            self.answer(int(fault), b"<Error><Code>Fault</Code><Message>made up</Message></Error>")
            return
        upstream = http.client.HTTPConnection(self.server.target, timeout=10)
        upstream.request(self.command, self.path, body, dict(self.headers))
        reply = upstream.getresponse()
        content = reply.read()
        upstream.close()
        if fault == "lose the reply":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(reply.status, content, reply.getheaders())

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def proxied(s3_server, s3_root):
    """A section of an S3 store behind a proxy, and the proxy."""
    proxy = FaultyProxy(s3_server.endpoint_url)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield StorageConfig(root=s3_root, endpoint_url=proxy.url), proxy
    proxy.shutdown()
    thread.join()
    proxy.server_close()


def test_a_claim_whose_reply_was_lost_is_held(proxied):
    section, proxy = proxied
    claims = claims_of(section)
    won(Contest(claims, "shard/0")).release()  # the server is known from now on
    proxy.faults = ["lose the reply"]
    won(Contest(claims, NAME)).release()
    assert not claimed(section)


@pytest.mark.parametrize("how", ["ignores", "refuses"])
def test_a_real_server_without_conditions_has_one_winner_too(proxied, s3_server, monkeypatch, how):
    section, proxy = proxied
    bucket = s3_server.client()

    class WithoutConditions(_Forwarder):
        def do_PUT(self):
            if "If-None-Match" in self.headers:
                if how == "refuses":
                    proxy.faults = ["501"]
                else:
                    bucket.delete_object(Bucket=BUCKET, Key=self.path.partition(f"{BUCKET}/")[2].partition("?")[0])
            self.forward()

    proxy.RequestHandlerClass = WithoutConditions
    monkeypatch.setattr(module, "_kept_by", {})
    claims = {index: claims_of(section) for index in range(4)}
    wins = [win for win in at_once(4, lambda index: Contest(claims[index], NAME).attempt()) if win]
    assert module._kept_by == {section.root: False}
    assert len(wins) == 1
    wins[0].release()
    assert not claimed(section)


class TestAStoreThatIsAway:
    """Through a proxy that spoils requests, with the shortest lease of a config."""

    @pytest.fixture
    def proxy(self, s3_server):
        with FaultyS3(s3_server.endpoint_url, hang_s=60.0) as proxy:
            yield proxy

    @pytest.fixture
    def through(self, proxy, s3_root):
        section = StorageConfig(root=s3_root, endpoint_url=proxy.url, claim_lease_s=12.0)
        assert module._keeps_conditions(StoreFiles(section))
        return section

    @pytest.fixture
    def behind(self, through, s3_server):
        return through.model_copy(update={"endpoint_url": s3_server.endpoint_url})

    @pytest.mark.parametrize("method", ["PUT", "GET"])
    def test_an_owner_whose_renewals_hang_is_not_taken_over(self, through, behind, proxy, method):
        claim = won(Contest(claims_of(through), NAME))
        proxy.script(method, "hang", "hang")
        assert is_waited_for(behind, 18.0)
        assert proxy.num_faults["hang"] == 2
        assert not claim.is_lost
        claim.release()

    def test_work_of_a_living_owner_is_not_begun_when_patience_is_over(self, through, behind, proxy):
        claim_elsewhere(behind, lease_s=600)
        store = ArtifactStore(through.model_copy(update={"patience_s": 2.0}))
        threading.Timer(1.0, proxy.outage, [60.0]).start()
        with (
            pytest.raises(StoreUnavailableError),
            store.claims("test").hold(NAME, lambda: store.get_json("made")) as turn,
        ):
            pytest.fail(f"began: {turn}")

    def test_an_outage_before_the_first_look_is_waited_out(self, through, behind, proxy):
        claim_elsewhere(behind, lease_s=600)
        store, made = ArtifactStore(through), {"made": "it"}
        proxy.outage(4.0)
        threading.Timer(5.0, ArtifactStore(behind).put_json, ["made", made]).start()
        with store.claims("test").hold(NAME, lambda: store.get_json("made")) as turn:
            assert turn == (made, None)

    def test_a_store_that_only_makes_no_claims_is_worked_in_when_patience_is_over(self, through, proxy):
        proxy.methods, proxy.rates = ("PUT",), {"500": 1.0}
        store = ArtifactStore(through.model_copy(update={"patience_s": 2.0}))
        with store.claims("test").hold(NAME, lambda: store.get_json("made")) as turn:
            assert turn == (None, None)

    def test_an_outage_is_not_remembered_as_what_the_server_can_do(self, through, proxy, monkeypatch):
        monkeypatch.setattr(module, "_kept_by", {})
        proxy.script("PUT", *["500"] * 20)
        contest = Contest(claims_of(through), NAME)
        with pytest.raises(StoreUnavailableError):
            contest.attempt()
        assert module._kept_by == {}
        proxy.scripted_no_more()
        won(contest).release()
        assert module._kept_by == {through.root: True}

    def test_a_claim_of_which_every_reply_was_lost_is_ones_own(self, through, proxy):
        contest = Contest(claims_of(through), NAME)
        proxy.script("PUT", "lose", *["500"] * 20)
        with pytest.raises(StoreUnavailableError):
            contest.attempt()
        proxy.scripted_no_more()
        claim = won(contest)
        assert claim.generation == 1
        claim.release()
        assert not claimed(through)

    def test_a_server_that_hangs_keeps_nobody_from_another(self, through, proxy, monkeypatch):
        monkeypatch.setattr(module, "_kept_by", {})
        proxy.script("PUT", "hang", "hang")
        other = through.model_copy(update={"root": f"{through.root}-other"})
        asking = threading.Thread(target=module._keeps_conditions, args=[StoreFiles(through)], daemon=True)
        asking.start()
        wait_until(lambda: proxy.num_faults["hang"])
        proxy.scripted_no_more()
        assert module._keeps_conditions(StoreFiles(other))
        assert asking.is_alive()

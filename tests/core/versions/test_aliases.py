"""Aliases on a folder and on a real S3 server: one history whoever writes, and only whole versions."""

import multiprocessing
import os
import random
import signal
import threading
import time
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mralign_core.config import StorageConfig
from mralign_core.errors import AliasMovedError, ArtifactError, ConfigError, StorageError, StoreUnavailableError
from mralign_core.storage import ArtifactStore
from mralign_core.versions import aliases as module
from mralign_core.versions.aliases import AliasEntry, Aliases, version_name
from tests.faulty_s3 import FaultyS3
from tests.unconditional_store import ignore_conditions
from tests.version_store import publish_version


@pytest.fixture
def versions(store, make):
    """The ids of four versions on each kind of store."""
    return [make(store, letter).id for letter in "abcd"]


def promote(store, to, by="a writer", name="champion"):
    """A move by a writer who looks first."""
    aliases = Aliases(store)
    current = aliases.current(name)
    return aliases.move(name, to, expected=current.to if current else None, by=by)


def named(store):
    """The entry that says what is champion."""
    entry = Aliases(store).current("champion")
    assert entry
    return entry


def assert_is_whole(history):
    """Linear and complete: numbered from 1, each going on from the one before."""
    assert [entry.n for entry in history] == list(range(1, len(history) + 1))
    assert history[0].from_ is None if history else True
    assert all(after.from_ == before.to for before, after in pairwise(history))


def at_once(*calls):
    """What calls that start together return, or the error that they raise."""
    results: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(index):
        barrier.wait()
        try:
            results[index] = calls[index]()
        except (AliasMovedError, StorageError) as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_an_alias_names_nothing_then_what_it_was_last_moved_to(store, versions):
    aliases = Aliases(store)
    assert (aliases.current("champion"), aliases.history("champion"), aliases.names()) == (None, [], [])
    first = aliases.move("champion", versions[0], expected=None, by="ada", why="the first")
    second = aliases.move("champion", versions[1], expected=versions[0], by="ben")
    assert Aliases(store).history("champion") == [first, second]
    assert named(store) == second
    assert (first.from_, first.to, first.by, first.why) == (None, versions[0], "ada", "the first")
    assert Aliases(store).names() == ["champion"]
    assert_is_whole([first, second])


def test_who_comes_second_is_told_who_was_first_and_when(store, versions):
    aliases = Aliases(store)
    aliases.move("champion", versions[0], expected=None, by="ada")
    moved = aliases.move("champion", versions[1], expected=versions[0], by="ben", why="better by a point")
    with pytest.raises(AliasMovedError) as caught:
        aliases.move("champion", versions[2], expected=versions[0], by="cem")
    message = str(caught.value)
    assert f"no longer names {version_name(versions[0])}" in message
    assert f"move to {version_name(versions[1])} by ben on {moved.host}, {moved.at:%Y-%m-%d %H:%M} UTC" in message
    assert "better by a point" in message
    assert aliases.current("champion") == moved


def test_a_first_move_is_refused_where_another_was_first(store, versions):
    promote(store, versions[0])
    with pytest.raises(AliasMovedError, match="no longer names nothing: move to"):
        Aliases(store).move("champion", versions[1], expected=None, by="late")


def test_a_move_to_what_it_names_is_no_move(store, versions):
    first = promote(store, versions[0])
    assert promote(store, versions[0]) == first
    assert Aliases(store).history("champion") == [first]


def test_a_rollback_goes_back_one_promotion_at_a_time_and_is_an_entry_itself(store, versions):
    aliases = Aliases(store)
    for to in versions[:3]:
        promote(store, to)
    back = [aliases.rollback("champion", by="ada", why="worse").to for _ in range(2)]
    assert back == [versions[1], versions[0]]
    with pytest.raises(ArtifactError, match="is the first version that it names"):
        aliases.rollback("champion", by="ada")
    promote(store, versions[3])
    assert aliases.rollback("champion", by="ada").to == versions[0]
    history = aliases.history("champion")
    assert [entry.kind for entry in history] == ["move"] * 3 + ["rollback"] * 2 + ["move", "rollback"]
    assert_is_whole(history)


def test_an_alias_that_names_nothing_cannot_be_rolled_back(folder_store):
    with pytest.raises(ArtifactError, match="it names none; promote another"):
        Aliases(folder_store).rollback("champion", by="ada")


@pytest.mark.parametrize("name", ["", "Champion", "1st", "a/b", "../x", "a" * 33, "-a", "a b"])
def test_what_is_no_name_is_refused(folder_store, name):
    with pytest.raises(ConfigError, match="begin with a lower-case letter"):
        Aliases(folder_store).current(name)


def test_aliases_have_histories_of_their_own(store, versions):
    promote(store, versions[0], name="champion")
    promote(store, versions[1], name="team-b")
    assert Aliases(store).names() == ["champion", "team-b"]
    assert [entry.n for entry in Aliases(store).history("team-b")] == [1]


def test_of_many_that_move_it_at_once_one_does_and_the_others_are_told(store, versions):
    first = promote(store, versions[0])
    for _ in range(3):
        current = named(store)
        others = [to for to in versions if to != current.to]
        results = at_once(
            *(
                lambda to=to, current=current: Aliases(store).move("champion", to, expected=current.to, by=to)
                for to in others
            )
        )
        moved = [result for result in results if not isinstance(result, Exception)]
        assert len(moved) == 1
        assert all(isinstance(result, AliasMovedError) for result in results if result not in moved)
        assert named(store) == moved[0]
    history = Aliases(store).history("champion")
    assert len(history) == 4
    assert history[0] == first
    assert_is_whole(history)


def test_writers_that_look_again_all_come_to_move_it(store, versions):
    def moving(by):
        done: list[AliasEntry] = []
        rng = random.Random(by)
        while len(done) < 3:
            try:
                current = Aliases(store).current("champion")
                to = rng.choice([each for each in versions if not current or each != current.to])
                done.append(Aliases(store).move("champion", to, expected=current.to if current else None, by=by))
            except AliasMovedError:
                time.sleep(rng.uniform(0, 0.05))
        return done

    done = at_once(*(lambda by=by: moving(by) for by in "xyz"))
    history = Aliases(store).history("champion")
    assert_is_whole(history)
    assert history == sorted((entry for entries in done for entry in entries), key=lambda entry: entry.n)


class KilledError(BaseException):
    """A writer that is gone, at this point."""


class Stepped:
    """A store for one writer whose every request about aliases waits for the writer's turn, and may end it.

    ``ends`` says at which request, before or after it took effect, and how.
    """

    STEPS = ("names", "read", "read_as", "write_once")

    def __init__(self, store: ArtifactStore, ends: tuple[int, str, BaseException] | None):
        self._store, self._step = store, 0
        unending: tuple[int, str, BaseException] = (0, "", KilledError())
        self._ends_at, self._ends, self._error = ends if ends else unending
        self.may_go, self.has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def files(self):
        return self

    def __getattr__(self, name):
        target = getattr(self._store, name, None) or getattr(self._store.files, name)
        return self._stepping(target) if name in self.STEPS else target

    def _stepping(self, call):
        def step(*args):
            self.has_stopped.release()
            self.may_go.acquire()
            self._step += 1
            is_last = self._step == self._ends_at
            if is_last and self._ends == "before":
                raise self._error
            result = call(*args)
            if is_last:
                raise self._error
            return result

        return step


class Writer(threading.Thread):
    """Moves an alias once, or rolls it back, as its turns come; knows what it was told."""

    def __init__(self, store, name, wish, ends):
        super().__init__(daemon=True)
        self.store, self.ended = Stepped(store, ends), False
        self.told: Any = None
        self._name, self._wish = name, wish

    def run(self):
        aliases = Aliases(cast(ArtifactStore, self.store))
        try:
            if self._wish is None:
                self.told = aliases.rollback(self._name, by="x")
            else:
                current = aliases.current(self._name)
                expected = current.to if current else None
                self.told = aliases.move(self._name, self._wish, expected=expected, by="x")
        except (AliasMovedError, ArtifactError) as error:
            self.told = error
        except (StorageError, KilledError):
            self.told = "nobody knows"
        finally:
            self.ended = True
            self.store.has_stopped.release()


def interleave(writers, order):
    """Give writers their turns in an order, then let all come to their ends."""
    for writer in writers:
        writer.start()
        writer.store.has_stopped.acquire()
    turns = [*order, *(index for _ in range(100) for index in range(len(writers)))]
    for index in turns:
        writer = writers[index % len(writers)]
        if not writer.ended:
            writer.store.may_go.release()
            writer.store.has_stopped.acquire()
    for writer in writers:
        writer.join(10.0)
        assert writer.ended


ENDS = st.one_of(
    st.none(),
    st.tuples(
        st.integers(1, 6),
        st.sampled_from(["before", "after"]),
        st.sampled_from([KilledError(), StorageError("the store is away")]),
    ),
)
WRITERS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, None]), ENDS), min_size=2, max_size=5)
ORDER = st.lists(st.integers(0, 4), max_size=30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store in a folder with four versions; each example has an alias of its own."""
    folder = tmp_path_factory.mktemp("shared")
    store = ArtifactStore(StorageConfig(root=str(folder / "store")))
    return store, [publish_version(store, folder, letter).id for letter in "abcd"], iter(range(1_000_000))


@given(waves=st.lists(st.tuples(WRITERS, ORDER), min_size=1, max_size=3))
def test_however_writers_meet_fail_and_are_killed_the_history_is_linear_and_complete(shared, waves):
    store, ids, numbers = shared
    name, writers = f"a{next(numbers)}", []
    for wishes, order in waves:
        wave = [Writer(store, name, None if wish is None else ids[wish], ends) for wish, ends in wishes]
        interleave(wave, order)
        writers += wave
    history = Aliases(store).history(name)
    assert_is_whole(history)
    assert all(entry.to in ids for entry in history)
    told = {writer.told.token: writer.told for writer in writers if isinstance(writer.told, AliasEntry)}
    known = {entry.token: entry for entry in history}
    assert told.items() <= known.items(), "what a writer was told has happened"
    unknown = [writer for writer in writers if writer.told == "nobody knows"]
    assert len(known) - len(told) <= len(unknown), "what a writer was told to have failed has not happened"


def move_without_end(section, ids):
    """What the process that is killed does."""
    store = ArtifactStore(section)
    while True:
        current = Aliases(store).current("champion")
        to = ids[0] if current is None or current.to != ids[0] else ids[1]
        Aliases(store).move("champion", to, expected=current.to if current else None, by="killed")


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_history(folder_store, make, tmp_path):
    ids = [make(folder_store, letter).id for letter in "ab"]
    rng, section = random.Random(0), StorageConfig(root=str(tmp_path / "store"))
    seen = 0
    for _ in range(25):
        process = multiprocessing.get_context("fork").Process(target=move_without_end, args=[section, ids], daemon=True)
        process.start()
        assert process.pid
        time.sleep(rng.uniform(0.01, 0.08))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        history = Aliases(folder_store).history("champion")
        assert_is_whole(history)
        assert len(history) >= seen
        seen = len(history)
    assert seen > 10
    assert named(folder_store).to in ids


def damage_version(root, version):
    (root / version.ref.path / "data" / "version.json").unlink()


def damage_adapter(root, version):
    (root / version.adapter.path / "data" / "weights").write_text("oF a")  # of the same size


def cut_adapter(root, version):
    (root / version.adapter.path / "data" / "weights").write_text("")


def remove_model(root, version):
    for path in sorted((root / version.parents["model"].path).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("damage", [damage_version, damage_adapter, cut_adapter, remove_model])
def test_a_version_that_is_damaged_or_gone_is_not_promoted(folder_store, make, tmp_path, damage):
    good, bad = make(folder_store, "b"), make(folder_store, "a")
    promote(folder_store, good.id)
    damage(tmp_path / "store", bad)
    with pytest.raises(ArtifactError, match=r"version mr_align-aaaaaaaa is damaged or gone: .*Run its pipeline again"):
        promote(folder_store, bad.id)
    assert named(folder_store).to == good.id
    assert len(Aliases(folder_store).history("champion")) == 1


def test_a_version_that_was_never_made_is_not_promoted(folder_store, make):
    made = make(folder_store, "a")
    for version_id in (f"mr_align-{'c' * 64}", f"kto-{made.ref.key}"):
        with pytest.raises(ArtifactError, match="no whole version of that variant and key"):
            promote(folder_store, version_id)
    assert not Aliases(folder_store).names()


def test_a_rollback_to_a_version_that_is_gone_is_refused(folder_store, make, tmp_path):
    first, second = make(folder_store, "a"), make(folder_store, "b")
    promote(folder_store, first.id)
    promote(folder_store, second.id)
    damage_version(tmp_path / "store", first)
    with pytest.raises(ArtifactError, match="mr_align-aaaaaaaa is damaged or gone"):
        Aliases(folder_store).rollback("champion", by="ada")
    assert named(folder_store).to == second.id


@pytest.mark.parametrize("content", [b"", b'{"n": 2'])
def test_an_entry_that_was_lost_with_the_power_is_gone_around(folder_store, make, monkeypatch, content):
    monkeypatch.setattr(module, "HALF_WRITTEN_S", 0.2)
    ids = [make(folder_store, letter).id for letter in "ab"]
    first = promote(folder_store, ids[0])
    folder_store.files.write("aliases/champion/00000002.json", content)
    assert named(folder_store) == first
    third = promote(folder_store, ids[1])
    assert (third.n, third.from_) == (3, ids[0])
    assert Aliases(folder_store).history("champion") == [first, third]


def test_an_entry_that_is_being_written_is_waited_for(folder_store, make):
    ids = [make(folder_store, letter).id for letter in "ab"]
    first = promote(folder_store, ids[0])
    entry = first.model_copy(update={"n": 2, "from_": ids[0], "to": ids[1], "token": "another"})
    path = "aliases/champion/00000002.json"
    folder_store.files.write(path, b"")
    data = entry.model_dump_json(by_alias=True).encode()
    threading.Timer(0.3, folder_store.files.write, [path, data]).start()
    assert named(folder_store) == entry


class TestAStoreThatIsAway:
    """Through a proxy that spoils requests."""

    @pytest.fixture
    def proxy(self, s3_server):
        with FaultyS3(s3_server.endpoint_url) as proxy:
            yield proxy

    @pytest.fixture
    def through(self, proxy, s3_root, tmp_path):
        section = StorageConfig(root=s3_root, endpoint_url=proxy.url, patience_s=20.0)
        return ArtifactStore(section, cache_folder=tmp_path / "cache")

    def test_in_the_middle_of_a_promotion_is_waited_for(self, through, make, proxy):
        ids = [make(through, letter).id for letter in "ab"]
        first = promote(through, ids[0])
        proxy.outage(2.0)
        second = promote(through, ids[1])
        assert Aliases(through).history("champion") == [first, second]

    def test_a_move_whose_reply_was_lost_is_known_as_ones_own(self, through, make, proxy):
        version = make(through, "a").id
        promote(through, version, name="another")  # the server is known from now on
        proxy.script("PUT", "lose")
        entry = promote(through, version)
        assert proxy.num_faults["lose"] == 1
        assert Aliases(through).history("champion") == [entry]

    def test_a_promotion_that_ends_there_has_happened_or_has_not_and_can_be_repeated(self, through, make, proxy):
        version = make(through, "a").id
        promote(through, version, name="another")
        impatient = StorageConfig(root=through.root_uri, endpoint_url=proxy.url, patience_s=1.0)
        proxy.script("PUT", "lose", *["500"] * 20)
        with pytest.raises(StoreUnavailableError, match="run again"):
            promote(ArtifactStore(impatient), version)
        proxy.scripted_no_more()
        assert promote(through, version).n == 1
        assert len(Aliases(through).history("champion")) == 1


class TestAServerThatIgnoresConditions:
    """Emulated as for claims: whoever creates replaces."""

    @pytest.fixture(autouse=True)
    def _ignoring(self, monkeypatch):
        ignore_conditions(monkeypatch)

    def test_one_of_many_moves_it_there_too(self, folder_store, make, monkeypatch):
        ids = [make(folder_store, letter).id for letter in "abcde"]
        write_once, everyone_has_looked, first = ArtifactStore.write_once, threading.Barrier(len(ids)), set()

        def write(store, path, data):
            if data not in first:
                first.add(data)
                everyone_has_looked.wait(10.0)
            return write_once(store, path, data)

        monkeypatch.setattr(ArtifactStore, "write_once", write)
        results = at_once(
            *(lambda to=to: Aliases(folder_store).move("champion", to, expected=None, by=to) for to in ids)
        )
        moved = [result for result in results if not isinstance(result, Exception)]
        assert len(moved) == 1
        assert Aliases(folder_store).history("champion") == moved
        assert all(isinstance(result, AliasMovedError) for result in results if result not in moved)
        assert list(folder_store.files.names("aliases/champion")) == ["00000001.json"]

    def test_a_bid_of_a_writer_that_was_killed_stands_in_nobodys_way_for_ever(self, folder_store, make, monkeypatch):
        monkeypatch.setattr(module, "DEAD_BID_S", 0.5)
        version = make(folder_store, "a")
        folder_store.files.write("aliases/champion/00000001.json~0", b"")
        assert promote(folder_store, version.id).n == 1
        assert list(folder_store.files.names("aliases/champion")) == ["00000001.json"]

"""A promotion or a pin, and a collection, at the same moment: whatever comes first, what is named is there."""

import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mralign_core.config import RetentionConfig, StorageConfig
from mralign_core.errors import ArtifactError, StorageError
from mralign_core.retention import collect
from mralign_core.retention.collect import Collector
from mralign_core.retention.roots import pin_artifact, read_pins
from mralign_core.storage import ArtifactStore, keeping
from mralign_core.storage.claims import Contest
from mralign_core.storage.filesystem import StoreFiles
from mralign_core.versions.aliases import AliasEntry, Aliases, require_whole
from tests.version_store import publish, publish_version

ALL_GOES = RetentionConfig(runs=0, days=0.0, grace_hours=0.0, unnamed_versions=0)
TURN_S = 60.0


class Turns:
    """Two threads that go on by one step of the store each, in the order of a list; who has none left goes last."""

    def __init__(self, order):
        self._order = list(order)
        self._changed = threading.Condition()
        self._ended: set[str] = set()

    def step(self, who):
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_turn_of(who), TURN_S), f"{who} never had its turn"
            if self._order:
                self._order.pop(0)
            self._changed.notify_all()

    def end(self, who):
        with self._changed:
            self._ended.add(who)
            self._changed.notify_all()

    def _is_turn_of(self, who):
        while self._order and self._order[0] in self._ended:
            self._order.pop(0)
        return not self._order or self._order[0] == who


WRITES_AND_LOOKS = ("read_as", "write", "create", "remove", "names", "listed", "sizes", "exists")


def together(turns, patch, **works):
    """Run two works, each operation of theirs on the store at its turn; what each returned, or raised."""
    ours, results = threading.local(), {}
    for name in WRITES_AND_LOOKS:

        def operation(self, *args, real=getattr(StoreFiles, name), **kwargs):
            if not getattr(ours, "is_inside", True):
                ours.is_inside = True
                turns.step(ours.who)
                try:
                    return real(self, *args, **kwargs)
                finally:
                    ours.is_inside = False
            return real(self, *args, **kwargs)

        patch.setattr(StoreFiles, name, operation)

    def run(who, work):
        ours.who, ours.is_inside = who, False
        try:
            results[who] = work()
        except ArtifactError as error:
            results[who] = error
        finally:
            turns.end(who)

    threads = [threading.Thread(target=run, args=pair) for pair in works.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TURN_S)
    assert len(results) == 2
    return results


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return partial(tmp_path_factory.mktemp, "naming")


@settings(max_examples=60)
@given(
    steps=st.lists(st.integers(1, 30), max_size=5),
    first=st.sampled_from(["gc", "namer"]),
    by=st.sampled_from(["promotion", "pin"]),
)
def test_in_whatever_order_their_steps_come(steps, first, by, folders):
    """It is one of two: named and whole with all that it was made from, or refused and gone."""
    second = "namer" if first == "gc" else "gc"
    order = [who for number, of_one in enumerate(steps) for who in of_one * [(first, second)[number % 2]]]
    folder = folders()
    store = ArtifactStore(StorageConfig(root=str(folder / "store")))
    version = publish_version(store, folder)

    def name():
        if by == "pin":
            return pin_artifact(store, f"version/{version.ref.key}", "")
        return Aliases(store).move("champion", version.id, expected=None, by="a test")

    collector = Collector(store, ALL_GOES)
    plan = collector.plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "REQUESTS_AT_ONCE", 1)
        patch.setattr(keeping, "LOOK_AGAIN_AT_REMOVAL_S", 0.0)
        patch.setattr(collect, "ThreadPoolExecutor", SameThread)
        found = together(Turns(order), patch, gc=lambda: collector.carry_out(plan), namer=name)
    assert not isinstance(found["gc"], ArtifactError)
    is_named = bool(read_pins(store) if by == "pin" else Aliases(store).current("champion"))
    assert is_named != isinstance(found["namer"], ArtifactError)
    if is_named:
        require_whole(store, version.id)
    else:
        assert not store.files.sizes("artifacts/version")
    assert not [name for name in store.files.sizes("claims") if "probes" not in name]


class SameThread:
    """A pool whose work is done by the caller."""

    def __init__(self, _):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def version(store, tmp_path):
    return publish_version(store, tmp_path)


def test_a_promotion_in_the_middle_of_a_collection_keeps_the_version_and_what_it_was_made_from(
    store, version, monkeypatch
):
    """It comes when what is named was just read, and would be read again only ten seconds later."""
    collector = Collector(store, ALL_GOES)
    plan, still_going = collector.plan(), collector._still_going
    promoted: list[AliasEntry] = []

    def then_promoted():
        found = still_going()
        if not promoted:
            promoted.append(Aliases(store).move("champion", version.id, expected=None, by="a test"))
        return found

    monkeypatch.setattr(collector, "_still_going", then_promoted)
    done = collector.carry_out(plan)
    assert not done.removed and {each.kind for each in done.spared} == {"version", "adapter", "model"}
    require_whole(store, version.id)


@pytest.mark.parametrize("by", ["promotion", "pin"])
def test_who_comes_while_it_is_removed_waits_and_is_told_where_that_does_not_end(by, store, version, monkeypatch):
    monkeypatch.setattr(keeping, "REMOVAL_S", 0.3)
    claim = Contest(store.claims(keeping.COLLECTOR), f"version/{version.ref.key}").attempt()
    assert claim

    def name():
        if by == "pin":
            pin_artifact(store, f"version/{version.ref.key}", "")
        else:
            Aliases(store).move("champion", version.id, expected=None, by="a test")

    with pytest.raises(ArtifactError, match="is being removed by run 'mralign gc'"):
        name()
    assert Aliases(store).current("champion") is None and not read_pins(store)
    claim.release()
    name()


def test_a_checkpoint_that_is_being_removed_can_not_be_pinned(store, tmp_path, monkeypatch):
    """The collector removes it under the claim of the adapter that is trained, and there the pin must look."""
    monkeypatch.setattr(keeping, "REMOVAL_S", 0.3)
    checkpoint = publish(store, tmp_path, f"checkpoint/{'a' * 64}", "step-000000001", {"weights": "of a"})
    told: list[str] = []
    real = ArtifactStore.remove_folder

    def pinned_first(self, path):
        with pytest.raises(ArtifactError, match="is being removed by run 'mralign gc'") as error:
            pin_artifact(store, f"{checkpoint.stage}/{checkpoint.key}", "")
        told.append(str(error.value))
        real(self, path)

    monkeypatch.setattr(ArtifactStore, "remove_folder", pinned_first)
    collector = Collector(store, ALL_GOES)
    assert [each.path for each in collector.carry_out(collector.plan()).removed] == [checkpoint.path]
    assert not read_pins(store) and f"claims/adapter/{'a' * 64}.*" in told[0]


def test_a_checkpoint_that_is_pinned_in_the_middle_of_a_collection_stays(store, tmp_path, monkeypatch):
    checkpoint = publish(store, tmp_path, f"checkpoint/{'a' * 64}", "step-000000001", {"weights": "of a"})
    collector = Collector(store, ALL_GOES)
    plan, still_going = collector.plan(), collector._still_going

    def then_pinned():
        found = still_going()
        pin_artifact(store, f"{checkpoint.stage}/{checkpoint.key}", "")
        return found

    monkeypatch.setattr(collector, "_still_going", then_pinned)
    assert not collector.carry_out(plan).removed
    assert store.open_directory(checkpoint)


def test_while_somebody_is_about_to_name_it_neither_it_nor_what_it_was_made_from_goes(store, version):
    collector = Collector(store, ALL_GOES)
    plan = collector.plan()
    assert {each.kind for each in plan.going} == {"version", "adapter", "model"}
    with keeping.kept(store, "a person who is asked", [version.ref.path]):
        assert not collector.carry_out(plan).removed
        assert not Collector(store, ALL_GOES).plan().going
    assert len(Collector(store, ALL_GOES).plan().going) == 3


def test_where_claims_do_not_work_no_version_goes(store, version, monkeypatch):
    def refuse(*_):
        raise StorageError("no new file, the quota is used up")

    collector = Collector(store, ALL_GOES)
    plan = collector.plan()
    monkeypatch.setattr(Contest, "attempt", refuse)
    done = collector.carry_out(plan)
    assert not done.removed
    require_whole(store, version.id)

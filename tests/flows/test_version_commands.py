"""``mralign versions``, ``show``, ``diff``, ``promote`` and ``rollback`` as their user meets them; needs no server."""

import json

import pytest

from flows.commands.export import Exported
from flows.commands.results import console
from mralign_core.config import StorageConfig
from mralign_core.storage import ArtifactStore
from mralign_core.versions.aliases import Aliases
from tests.version_store import publish_version


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(StorageConfig(root=str(tmp_path / "store")))


@pytest.fixture
def mralign(mralign, monkeypatch, tmp_path):
    """The command on the store, on a terminal that breaks no cell's line."""
    monkeypatch.setattr(console, "width", 200)
    return lambda *arguments: mralign(*arguments, f"--set=storage.root={tmp_path / 'store'}")


@pytest.fixture
def two(store, tmp_path):
    """Two versions, the second the newer."""
    return [publish_version(store, tmp_path, letter, made_from={"adapter": f"adapter/{letter}"}) for letter in "ab"]


def test_an_empty_store_says_where_versions_come_from(mralign):
    code, out, _ = mralign("versions")
    assert (code, "`mralign run` makes one" in out) == (0, True)


def test_a_promotion_and_a_rollback_say_from_what_to_what_and_stand_in_the_history(mralign, two):
    assert "champion: nothing → mr_align-aaaaaaaa" in mralign("promote", "mr_align-a")[1]
    assert "champion: mr_align-aaaaaaaa → mr_align-bbbbbbbb" in mralign("promote", "bbb", "--why", "better")[1]
    assert "champion names mr_align-bbbbbbbb already" in mralign("promote", "bbb")[1]
    assert "champion: mr_align-bbbbbbbb → mr_align-aaaaaaaa" in mralign("rollback", "--why", "worse on Sunday")[1]
    found = json.loads(mralign("versions", "--json", "--history")[1])
    assert [version["name"] for version in found["versions"]] == ["mr_align-bbbbbbbb", "mr_align-aaaaaaaa"]
    assert [version["aliases"] for version in found["versions"]] == [[], ["champion"]]
    moves = [(entry["n"], entry["kind"], entry["why"]) for entry in found["history"]["champion"]]
    assert moves == [(1, "move", ""), (2, "move", "better"), (3, "rollback", "worse on Sunday")]
    listed = mralign("versions", "--history")[1]
    assert "every move of champion" in listed
    assert "worse on Sunday" in listed


def test_commands_go_by_the_alias_of_the_config_unless_another_is_named(mralign, store, two):
    own = "--set=retrain.alias=support"
    assert "support: nothing → mr_align-aaaaaaaa" in mralign("promote", "aaa", own)[1]
    assert "support: mr_align-aaaaaaaa → mr_align-bbbbbbbb" in mralign("promote", "bbb", own)[1]
    assert "champion: nothing → mr_align-bbbbbbbb" in mralign("promote", "bbb", "--alias", "champion", own)[1]
    assert "support: mr_align-bbbbbbbb → mr_align-aaaaaaaa" in mralign("rollback", own)[1]
    named = {name: Aliases(store).history(name)[-1].to for name in ("support", "champion")}
    assert named == {"support": two[0].id, "champion": two[1].id}
    assert two[0].id in mralign("show", own)[1] and two[1].id in mralign("show")[1]
    assert "(retrain.alias): support names mr_align-aaaaaaaa" in mralign("versions", own)[1]
    assert json.loads(mralign("versions", "--json", own)[1])["alias"] == "support"
    assert "(retrain.alias): other names no version" in mralign("versions", "--set=retrain.alias=other")[1]


def test_export_goes_by_the_alias_of_the_config_and_prints_it(mralign, two, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.commands.export.export", lambda *_, **__: Exported("none", "vllm serve"))
    own = "--set=retrain.alias=support"
    mralign("promote", "aaa", own)
    mralign("promote", "bbb")
    for arguments, says in (
        ((own,), "mr_align-aaaaaaaa, which alias support names"),
        ((own, "--alias", "champion"), "mr_align-bbbbbbbb, which alias champion names"),
        ((), "mr_align-bbbbbbbb, which alias champion names"),
    ):
        code, out, err = mralign("export", str(tmp_path / "out"), *arguments)
        assert (code, err) == (0, "") and says in out


def test_what_cannot_be_done_is_one_message_and_no_traceback(mralign, store, two):
    for arguments, says in (
        (("rollback",), "it names none"),
        (("promote", "mr_align"), "2 versions fit"),
        (("promote", "bbb", "--alias", "Champion"), "begin with a lower-case letter"),
        (("show", "nothing"), "no alias or version fits"),
        (("show",), "alias 'champion' names no version"),
    ):
        code, _, err = mralign(*arguments)
        assert code == 2
        assert says in err
        assert "Traceback" not in err
    assert not Aliases(store).names()


def test_one_version_is_shown_with_the_aliases_that_named_it(mralign, store, two):
    Aliases(store).move("team-b", two[0].id, expected=None, by="ada", why="to try")
    code, out, _ = mralign("show", "team-b")
    assert code == 0
    assert two[0].id in out
    assert "to try" in out
    assert "no alias" in mralign("show", "bbb")[1]


def test_two_versions_are_compared_as_far_as_their_artifacts_are_there(mralign, two):
    code, out, _ = mralign("diff", "aaa", "bbb")
    assert code == 0
    assert "made from other adapter" in out
    assert "the configs are the same" in out


def test_versions_stand_side_by_side_by_the_names_that_people_have_for_them(mralign, store, two):
    Aliases(store).move("champion", two[0].id, expected=None, by="ada")
    code, out, _ = mralign("compare")
    assert code == 0 and all(version.name in out for version in two) and "champion" in out
    one = mralign("compare", "champion")[1]
    assert two[0].name in one and two[1].name not in one
    assert "no alias or version fits" in mralign("compare", "nothing")[2]


def test_an_alias_of_a_version_that_is_gone_is_told_in_the_list(mralign, store, two):
    Aliases(store).move("champion", two[0].id, expected=None, by="ada")
    store.remove("version", two[0].ref.key)
    assert "champion names mr_align-aaaaaaaa, which is damaged or gone" in mralign("versions")[1]


class TestATeamsRegistry:
    AWAY = "--set=retrain.registry={kind: mlflow, uri: 'http://127.0.0.1:1'}"

    @pytest.fixture(autouse=True)
    def _mlflow(self, monkeypatch, tmp_path):
        pytest.importorskip("mlflow", reason="package mlflow-skinny is not installed")
        monkeypatch.setattr("mralign_core.versions.registry.PAUSE_S", 0.0)
        monkeypatch.chdir(tmp_path)

    def test_one_that_is_away_stops_no_promotion_and_is_told_later(self, mralign, two, store, tmp_path):
        code, out, err = mralign("promote", "aaa", self.AWAY)
        assert (code, err) == (0, "") and "champion: nothing → mr_align-aaaaaaaa" in out
        assert "http://127.0.0.1:1: registered model 'mr-align' was not brought up" in out and "versions --sync" in out
        assert [entry.to for entry in Aliases(store).history("champion")] == [two[0].id]
        code, _, err = mralign("versions", "--sync", self.AWAY)
        assert code == 2 and "was not brought up to the store" in err
        there = f"--set=retrain.registry={{kind: mlflow, uri: 'sqlite:///{tmp_path}/mlflow.db'}}"
        out = mralign("versions", "--sync", there)[1]
        assert "registered mr_align-aaaaaaaa; champion names mr_align-aaaaaaaa (version 1 of mr-align)" in out
        assert "registered mr_align-bbbbbbbb" in mralign("promote", "bbb", there)[1]
        assert "champion names mr_align-aaaaaaaa (version 1 of mr-align)" in mralign("rollback", there)[1]
        assert "registry: it has all of it" in mralign("versions", "--sync", there)[1]

    def test_without_one_there_is_nothing_to_tell(self, mralign, two):
        code, _, err = mralign("versions", "--sync")
        assert code == 2 and "retrain.registry.kind" in err
        assert "registry" not in mralign("promote", "aaa")[1]

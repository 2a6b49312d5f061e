"""When and with what a report was made: from the manifests, in the page that is shown and not in the stored one."""

from datetime import UTC, datetime

import pytest

from mralign_core.config.storage import StorageConfig
from mralign_core.errors import ArtifactError
from mralign_core.reporting.provenance import MADE, ShownBy, provenance_of, with_provenance
from mralign_core.storage import ArtifactStore
from mralign_core.storage.lineage import Lineage


@pytest.fixture
def lineage(tmp_path):
    store = ArtifactStore(StorageConfig(root=str(tmp_path / "store")))

    def publish(stage, text, **facts):
        folder = tmp_path / stage
        folder.mkdir()
        (folder / "file").write_text(text)
        return store.publish(stage, "k" * 64, folder, fingerprint={}, **facts)

    labels = publish("annotations", "labels", parents=[], wall_time_s=3600, cost_usd=1.25)
    weights = publish("weights", "weights", parents=[labels], wall_time_s=30)
    page = publish("report", "page", parents=[labels, weights], wall_time_s=11)
    return store.lineage(page)


def told(lineage):
    return provenance_of(lineage, "pocket", ShownBy("pocket-1f2e3d4c", 3641, 1.25, "e0d3a5c <dirty>"))


def test_it_says_what_the_run_and_what_the_manifests_know(lineage):
    facts = told(lineage).facts
    assert facts["took"].startswith("1 h 0 min 41 s")
    assert facts["paid"] == "$1.25 in this run"
    assert facts["made"].startswith(f"{datetime.now(UTC):%Y-%m-%d}")
    assert {"python", "torch", "transformers", "prefect"} <= set(facts)


def test_other_versions_of_a_library_are_all_told(lineage):
    own = lineage.manifest
    other = own.model_copy(update={"package_versions": {**own.package_versions, "torch": "1.0"}})
    mixed = lineage._replace(manifest=other)
    assert told(mixed).facts["torch"].startswith("1.0, ")


def test_it_stands_in_the_place_that_the_page_keeps_for_it_and_is_escaped(lineage):
    page = with_provenance(f"<section>{MADE}</section>", told(lineage))
    assert MADE not in page and page.startswith("<section><div") and page.endswith("</section>")
    assert "e0d3a5c &lt;dirty&gt;" in page and "mralign run --config pocket --dry-run" in page


def test_without_a_run_nothing_is_said_of_one(lineage):
    alone = provenance_of(lineage)
    assert not {"run", "took", "paid", "commit"} & set(alone.facts)
    assert "torch" in alone.facts and any("YOUR-CONFIG.yaml" in command for command in alone.commands.values())


def test_a_report_that_is_gone_is_said_to_be(lineage):
    gone = Lineage(lineage.ref, None, "its manifest is missing", ())
    with pytest.raises(ArtifactError, match="its manifest is missing; run stage 'evaluate'"):
        told(gone)

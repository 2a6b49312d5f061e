"""The labels of a person, from ratings to what a run reads: published as an artifact, found by the name of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mralign_core.annotation.human import HumanLabels
from mralign_core.config import AnnotateConfig
from mralign_core.config.annotate import HUMAN_PREFIX
from mralign_core.errors import ArtifactError, ConfigError
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.rating.publications import add_publication, published_under
from mralign_core.rating.records import RatingRecords, check_rater, labels_said, latest
from mralign_core.schemas.human_labels import HUMAN_LABELS, HUMAN_LABELS_STAGE
from mralign_core.storage import ArtifactRef, ArtifactStore, key_of, scratch_folder
from mralign_core.storage.tables import write_table

HUMAN_LABELS_FILE = "labels.parquet"


def publish_ratings(store: ArtifactStore, rater: str, taxonomy: Taxonomy) -> ArtifactRef:
    """Publish a rater's labels of all rounds with a label set; of an item in several rounds, what was said last.

    Corrections that were made after the results had been seen count: this is to be right, and not blind.

    Args:
        store: of the rounds.
        rater: whose.
        taxonomy: the label set; rounds with another one are passed over.

    Raises:
        ArtifactError: the rater rated no segment with it.
    """
    records = RatingRecords(store)
    said = []
    rounds: list[str] = []
    parents: dict[str, ArtifactRef] = {}
    for name, of in records.rounds().items():
        ratings = latest(records.ratings(name, check_rater(rater)))
        if of.label_set is None or of.label_set.labels != tuple(taxonomy.labels) or not ratings:
            continue
        rounds.append(name)
        parents |= {ref.path: ref for role, ref in of.artifacts.items() if role == "candidates"}
        said += [(ratings[shown.item], shown) for shown in of.items if shown.item in ratings]
    by_item = {
        shown.item: (rating, shown)
        for rating, shown in sorted(said, key=lambda each: each[0].at)
        if rating.state == "rated"
    }
    rows = [
        {
            "item": shown.item,
            "trace_id": shown.about,
            "segment": shown.segment,
            "labels": labels_said(rating.said),
        }
        for rating, shown in by_item.values()
    ]
    table = pd.DataFrame(rows, columns=list(HUMAN_LABELS.columns))
    return publish_human_labels(store, rater, table, parents=list(parents.values()), rounds=rounds, taxonomy=taxonomy)


def publish_human_labels(
    store: ArtifactStore,
    name: str,
    rows: pd.DataFrame,
    *,
    parents: Sequence[ArtifactRef],
    rounds: Sequence[str],
    taxonomy: Taxonomy,
) -> ArtifactRef:
    """Publish what a person said, for any run to use, as the newest of theirs; also what was published before.

    Args:
        store: where to.
        name: the person's.
        rows: of :data:`~mralign_core.schemas.human_labels.HUMAN_LABELS`.
        parents: the traces that were rated.
        rounds: those that they were rated in.
        taxonomy: the labels that they were rated with.

    Raises:
        ArtifactError: there is no label.
    """
    if rows.empty:
        raise ArtifactError(f"{name} has rated no segment with these labels: rate some first (mralign rate)")
    ordered = rows.sort_values(["trace_id", "segment", "item"], ignore_index=True)
    content = [[row.item, list(row.labels)] for row in ordered.itertuples()]
    key = f"{name}-{key_of(labels=content)[:16]}"
    with scratch_folder() as folder:
        write_table(folder, HUMAN_LABELS_FILE, ordered, HUMAN_LABELS)
        published = store.publish(
            HUMAN_LABELS_STAGE,
            key,
            folder,
            parents=parents,
            fingerprint={"rater": name, "rounds": list(rounds), "labels": list(taxonomy.labels)},
            table=HUMAN_LABELS.name,
        )
    add_publication(store, name, key)
    return published


def human_labels_of(store: ArtifactStore, section: AnnotateConfig) -> dict[str, ArtifactRef]:
    """Role → the labels of the person whom a config names for it.

    Raises:
        ConfigError: the person published none.
    """
    return {
        role: find_human_labels(store, endpoint.model, f"annotate.{role}")
        for role, endpoint in section.endpoints.items()
        if endpoint.model.startswith(HUMAN_PREFIX)
    }


def find_human_labels(store: ArtifactStore, model: str, field: str) -> ArtifactRef:
    """The labels that ``human/NAME`` or ``human/NAME-DIGEST`` stands for: of those that fit, the one published last.

    A publication is a record, of which :mod:`mralign_core.rating.publications` says more; labels that have none, as
    where the publisher was killed, are older than all that have one.

    Raises:
        ConfigError: there are none.
    """
    name, _, digest = model.removeprefix(HUMAN_PREFIX).partition("-")
    found = published_under(store, HUMAN_LABELS_STAGE, name, digest, name)
    if not found:
        known = ", ".join(f"{HUMAN_PREFIX}{key}" for key in store.keys(HUMAN_LABELS_STAGE)) or "nobody's"
        raise ConfigError(
            f"{field}: {model} has published no labels in {store.root_uri} (there are {known}): rate traces with "
            f"mralign rate --rater {name}, and publish them with mralign rate --rater {name} --publish"
        )
    return found[-1]


def read_human_labels(
    store: ArtifactStore, people: Mapping[str, ArtifactRef], section: AnnotateConfig, taxonomy: Taxonomy
) -> dict[str, HumanLabels]:
    """Role → the labels of the person whom a config names for it.

    Args:
        store: where they are.
        people: what :func:`human_labels_of` found.
        section: names them.
        taxonomy: the labels that the run uses.

    Raises:
        ConfigError: they are of another label set.
    """
    found = {}
    for role, ref in people.items():
        table = store.read_columns(ref, HUMAN_LABELS_FILE, HUMAN_LABELS, ["item", "labels"])
        by_item = {str(row.item): tuple(map(str, row.labels)) for row in table.itertuples()}
        model = section.endpoints[role].model
        check_label_set(store.manifest(ref).fingerprint["labels"], taxonomy, f"annotate.{role}: {model}")
        found[role] = HumanLabels(model, ref.sha256, by_item)
    return found


def check_label_set(rated_with: Sequence[str], taxonomy: Taxonomy, whose: str) -> None:
    """Refuse labels that were chosen from others: who had fewer to choose from would have said something else.

    Raises:
        ConfigError: it names a label that only one of the sets has.
    """
    foreign, lacking = sorted({*rated_with} - {*taxonomy.labels}), sorted({*taxonomy.labels} - {*rated_with})
    if foreign or lacking:
        differs = f"with {foreign[0]!r}" if foreign else f"without {lacking[0]!r}"
        raise ConfigError(
            f"{whose} rated with another label set, one {differs}: use the label set that was rated with "
            "(annotate.label_set), or rate with this one"
        )

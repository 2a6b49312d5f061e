"""Distilled annotators as artifacts: published, and found by the name that a config gives, ``local/NAME``.

Decisions:

* ``local/NAME`` is what was published last under a name, ``local/NAME-3f9a`` the one whose digest begins so. Its
  content is in the key of all labels that it helps to make, and it stands in their lineage.
* It belongs to a label set. Another one is refused, as is another encoder under the name of the one it learned with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mralign_core.config.annotate import LOCAL_PREFIX
from mralign_core.distillation.annotator import (
    ABOUT_FILE,
    WEIGHTS_FILE,
    DistilledAnnotator,
    read_annotator,
    write_annotator,
)
from mralign_core.distillation.fitting import is_same_encoder
from mralign_core.errors import ConfigError
from mralign_core.method.taxonomy import Taxonomy
from mralign_core.models.context_encoder import load_context_encoder
from mralign_core.models.sentence_encoder import load_sentence_encoder
from mralign_core.rating.publications import add_publication, published_under
from mralign_core.storage import ArtifactRef, ArtifactStore, key_of, scratch_folder
from mralign_core.storage.digests import file_sha256

DISTILLED_STAGE = "distilled-annotator"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def check_name(name: str) -> str:
    """The name of an annotator, if it can be one.

    Raises:
        ConfigError: it can't.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r:.60}: write a small letter, then up to 31 of a-z, 0-9 and _")
    return name


def publish_annotator(
    store: ArtifactStore,
    name: str,
    annotator: DistilledAnnotator,
    *,
    parents: Sequence[ArtifactRef],
    about: Mapping[str, Any],
) -> ArtifactRef:
    """Publish an annotator as the newest of its name; also what was published before.

    Args:
        store: where to.
        name: what a config calls it, behind ``local/``.
        annotator: what to publish.
        parents: what it learned from.
        about: what its manifest says beside its labels: where labels came from, its scores on held-out folds.
    """
    with scratch_folder() as folder:
        write_annotator(annotator, folder)
        digest = key_of(files=[file_sha256(folder / each) for each in (ABOUT_FILE, WEIGHTS_FILE)])[:16]
        key = f"{check_name(name)}-{digest}"
        published = store.publish(
            DISTILLED_STAGE,
            key,
            folder,
            parents=list(parents),
            fingerprint={"annotator": name, "labels": list(annotator.about.labels), **about},
        )
    add_publication(store, _namespace(name), key)
    return published


def find_annotator(store: ArtifactStore, model: str, field: str) -> ArtifactRef:
    """The artifact that ``local/NAME`` (the one published last) or ``local/NAME-DIGEST`` stands for.

    Raises:
        ConfigError: there is none, or a digest could be that of several.
    """
    name, _, digest = model.removeprefix(LOCAL_PREFIX).partition("-")
    found = published_under(store, DISTILLED_STAGE, name, digest, _namespace(name))
    if not found:
        known = ", ".join(f"{LOCAL_PREFIX}{key}" for key in store.keys(DISTILLED_STAGE)) or "none"
        raise ConfigError(
            f"{field}: there is no distilled annotator {model} in {store.root_uri} (there are: {known}); make it of "
            f"labels that a run has: mralign distil-annotator --name {name}"
        )
    if digest and len(found) > 1:
        fitting = ", ".join(f"{LOCAL_PREFIX}{each.key}" for each in found)
        raise ConfigError(f"{field}: {model} may be any of {fitting}: give more of the digest")
    return found[-1]


def open_annotator(store: ArtifactStore, ref: ArtifactRef, taxonomy: Taxonomy, field: str) -> DistilledAnnotator:
    """An annotator, ready to label.

    Args:
        store: where it is.
        ref: what :func:`find_annotator` found.
        taxonomy: the labels that the run uses.
        field: of the config that names it.

    Raises:
        ConfigError: it gives labels of another set, or its encoder is not here or is another one.
    """
    annotator = read_annotator(store.open_file(ref, WEIGHTS_FILE), store.open_file(ref, ABOUT_FILE))
    about = annotator.about
    if about.labels != tuple(taxonomy.labels):
        differs = sorted({*about.labels} ^ {*taxonomy.labels})
        raise ConfigError(
            f"{field}: {ref.stage}/{ref.key} learned other labels ({', '.join(differs[:3]) or 'in another order'}); "
            "use the one that it learned (annotate.label_set), or distil an annotator from labels of this one"
        )
    if not about.encoder:
        return annotator
    load = load_context_encoder if about.encoder_scale else load_sentence_encoder
    encode = load(about.encoder, field, "name another annotator")
    if not is_same_encoder(encode, about.encoder_probe, about.scale):
        raise ConfigError(
            f"{field}: {about.encoder} gives other vectors than the model of that name that {ref.stage}/{ref.key} "
            "learned with: put that one back, or distil anew"
        )
    return annotator._replace(encode=encode)


def _namespace(name: str) -> str:
    """Where publications of annotators are noted, beside those of people: no person's name has a full stop."""
    return f"local.{name}"

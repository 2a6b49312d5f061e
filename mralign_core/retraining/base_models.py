"""Whether a challenger and a champion are of one base model: only then does the gate compare them."""

from __future__ import annotations

from mralign_core.storage import ArtifactStore
from mralign_core.versions.version import Version

SHORT_DIGEST = 12
"""Characters of a digest or commit in a reason."""
_REMEDY = "promote it by hand (mralign promote), or set retrain.alias to a name of its own"


def why_other_base(store: ArtifactStore, challenger: Version, champion: Version) -> str:
    """Why two versions are not of one base model; "" where they are.

    A folder may have changed where it lies, and a model of the hub may have another commit: a champion scored on the
    new one would be another model than the one that was promoted. What a model holds counts, not where it lies.

    Args:
        store: where both are.
        challenger: the version that was just trained.
        champion: the one that it is to be compared with.

    Raises:
        ArtifactError: the artifact of a base model is gone.
    """
    ours, theirs = challenger.record.base_model, champion.record.base_model
    if ours != theirs:
        return f"it is of base model {ours}, and the champion of {theirs}: {_REMEDY}"
    now, then = (_contents_of_model(store, version) for version in (challenger, champion))
    if now == then:
        return ""
    return (
        f"base model {ours} is not what it was when the champion was trained (its contents were "
        f"{then[:SHORT_DIGEST]} and are {now[:SHORT_DIGEST]}), so the champion can't be had as it was: {_REMEDY}"
    )


def _contents_of_model(store: ArtifactStore, version: Version) -> str:
    """A digest of the files that a model is read from, or its commit; of one that is in the store, its artifact's."""
    model = version.parent("model")
    return store.manifest(model).model_revision or model.sha256

"""The version to which questions are new, where a retraining trains on what is new: the champion, once a run."""

from __future__ import annotations

from mralign_core.config import RunConfig
from mralign_core.intake.resolution import ConfigReference, Resolutions
from mralign_core.storage import ArtifactStore
from mralign_core.versions.aliases import Aliases


def pin_champion(config: RunConfig, store: ArtifactStore, run: str) -> RunConfig:
    """The config of a retraining with the version that its alias names in ``retrain.beyond``, and that recorded.

    Nothing is changed where all is trained on, where the config names a version itself, or where there is no champion.
    Within a run that has looked it up, what that found is taken, whoever has moved the alias since.

    Args:
        config: with its other references pinned.
        store: where the alias is, and resolutions are recorded.
        run: which run this is.
    """
    section = config.retrain
    if section.train_on == "all" or section.beyond:
        return config
    records = Resolutions(store, config.name)
    resolution = records.of(run)
    asked = ConfigReference(field="retrain.beyond", kind="alias", asked=section.alias)
    pinned = resolution.answer_to(asked) if resolution else None
    if pinned is None:
        entry = Aliases(store).current(section.alias)
        if entry is None:
            return config
        pinned = asked.model_copy(update={"pinned": entry.to, "source": f"move {entry.n} of the alias"})
        if resolution:
            references = [*resolution.references, pinned]
            records.keep(resolution.model_copy(update={"references": references}))
    return config.model_copy(update={"retrain": section.model_copy(update={"beyond": pinned.pinned})})

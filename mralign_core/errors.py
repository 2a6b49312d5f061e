"""Errors that a user can act on. The message names the field, the value, the limit, the row and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mralign_core.redaction import redact


class UserError(ValueError):
    """Something the user gave is wrong; repeating the same call cannot help, so it is never retried.

    The message is printed, logged and stored with the run, so secrets are taken out of it here.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class ConfigError(UserError):
    """A config field is unknown, out of range, or contradicts another."""


class DataError(UserError):
    """A row of a user's file or of a table between stages breaks its contract."""


class NoCandidatesError(UserError):
    """Selection kept no trace, or none of one polarity, so the next stage has nothing to work on."""


class NothingNewError(UserError):
    """A retraining is to train on what is new, and there is nothing, or not enough."""


class QualityGateError(UserError):
    """A pocket model does not know its world well enough to be aligned."""


class ArtifactError(UserError):
    """An artifact is missing, damaged, or of another schema than its reader expects."""


class AliasMovedError(UserError):
    """An alias names another version than the one that was to be replaced: another has moved it."""


class RegistryError(UserError):
    """A registry of the team's did not take what the store has; it is told again the next time."""


class StorageError(UserError):
    """The artifact store cannot be written to or reached."""


class StoreUnavailableError(StorageError):
    """The store did not answer for as long as ``storage.patience_s``; alone of these errors, another try may help."""


class BudgetError(UserError):
    """The next paid request could cross the budget; what was paid for is kept."""


class OutOfMemory(ConfigError):
    """A device ran out of memory, and this process has no smaller way to compute the same.

    Args:
        message: which pass, and what to change.
        smaller: fields of the train section with which new processes might have enough.
    """

    def __init__(self, message: str, smaller: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.smaller = dict(smaller or {})

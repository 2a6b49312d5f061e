"""What all sections share: they are frozen, refuse unknown fields and say which fields enter a cache key.

Fields marked ``operational`` (where, how many at once, names, and paths of files whose contents count instead) can't
change any result and are left out of the cache keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

OPERATIONAL: dict[str, Any] = {"operational": True}


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown fields, docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def fingerprint(self) -> dict[str, Any]:
        """The fields that can change an output, as JSON values; nested sections are followed."""
        names = [
            name for name, field in type(self).model_fields.items() if (field.json_schema_extra or {}) != OPERATIONAL
        ]
        dumped = self.model_dump(mode="json")
        return {name: _fingerprint(getattr(self, name), dumped[name]) for name in names}


def _fingerprint(value: Any, dumped: Any) -> Any:
    if isinstance(value, Section):
        return value.fingerprint()
    if isinstance(value, tuple):
        return [_fingerprint(item, plain) for item, plain in zip(value, dumped, strict=True)]
    return dumped


def refuse_ignored(section: Section, path: str, names: Sequence[str], why: str) -> None:
    """Refuse values of fields that nothing reads where they are set.

    Args:
        section: the section as it was given.
        path: its dotted path, for messages; empty for the run's own fields, and where the path is not known.
        names: fields that have no effect here.
        why: what makes it so, such as ``when model.source is 'hub'``.

    Raises:
        ValueError: one of them differs from its default.
    """
    for name in names:
        if getattr(section, name) != type(section).model_fields[name].default:
            field = f"{path}.{name}" if path else name
            raise ValueError(f"{field} has no effect {why}: remove it")

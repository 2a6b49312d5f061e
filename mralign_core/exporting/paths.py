"""Which paths name an export: asked by every command, so nothing that takes time is imported here."""

from __future__ import annotations

from pathlib import Path

EXPORT_FILE = "mralign-export.json"


def is_export(path: str | Path) -> bool:
    """Whether a path names the file of an export, or the folder of one."""
    return export_file_in(path) is not None


def export_file_in(path: str | Path) -> Path | None:
    """The file of the export that a path names, itself or its folder; None where it is no export."""
    path = Path(path)
    if path.name == EXPORT_FILE:
        return path
    return path / EXPORT_FILE if (path / EXPORT_FILE).is_file() else None


def traces_file(path: str | Path) -> str:
    """The file whose content stands for what a path of traces names: that of an export, else the path's own."""
    return str(export_file_in(path) or path)

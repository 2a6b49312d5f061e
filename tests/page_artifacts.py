"""What both UIs of Prefect can show of an artifact, checked on what a server holds."""

import base64
import io
import math
from collections import Counter

import httpx
from PIL import Image


def all_artifacts(url, auth, page_size=200):
    """What a server holds, but for the progress of runs that were killed."""
    query = {"artifacts": {"type": {"not_any_": ["progress", "result"]}}, "sort": "ID_DESC", "limit": page_size}
    found: list[dict] = []
    while True:
        body = {**query, "offset": len(found)}
        page = httpx.post(f"{url}/artifacts/filter", json=body, timeout=60, auth=auth).raise_for_status().json()
        found += page
        if len(page) < page_size:
            return found


def check_artifacts(artifacts):
    """Each is there once, and as both UIs can show it."""
    shown = [(artifact["flow_run_id"], artifact["key"]) for artifact in artifacts]
    assert not {of: times for of, times in Counter(shown).items() if times > 1}, "each artifact once"
    checks = {"table": check_table, "image": check_image, "markdown": check_text}
    for artifact in artifacts:
        assert artifact["description"], artifact["key"]
        checks[artifact["type"]](artifact["key"], artifact["data"])


def check_table(key, rows):
    """The V2 page crashes on a column without a name, and shows nothing of a mapping of columns."""
    rows = rows if not isinstance(rows, str) else __import__("json").loads(rows)
    assert isinstance(rows, list) and rows, f"{key}: {rows!r:.80}"
    columns = list(rows[0])
    assert columns and all(isinstance(name, str) and name.strip() for name in columns), f"{key}: {columns}"
    for row in rows:
        assert list(row) == columns, f"{key}: {row}"
        for cell in row.values():
            assert isinstance(cell, str | int | float | bool) or cell is None, f"{key}: {cell!r}"
            assert not (isinstance(cell, float) and math.isnan(cell)) and cell != "nan", f"{key}: {row}"


def check_image(key, address):
    """A picture that asks no other host for anything, and opens."""
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64", f"{key}: {kind:.80}"
    assert len(data) < 200_000, key
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert min(picture.size) > 50, key
        assert len(set(picture.convert("L").tobytes())) > 1, f"{key}: nothing is drawn"


def check_text(key, text):
    assert text.strip(), key
    assert "nan" not in text.replace("|", " ").split(), f"{key}: a number that is none"

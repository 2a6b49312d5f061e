"""When, by which run and with what a report was made: put into the page where it is shown, never where it is stored.

The report is an artifact like any other: named by its content, the same on every host and after every crash, found
again by a run of another name. A date, a duration, a version or a run's name in it would end that. They are known
nevertheless: each artifact's manifest says when it was made, how long that took, what it cost and with which libraries.
So the stored page has an empty place for them (:data:`MADE`), and :func:`with_provenance` fills it from the manifests
of all that the report was made from.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from mralign_core.config.presets import preset_names
from mralign_core.errors import ArtifactError
from mralign_core.storage.artifact import Manifest
from mralign_core.storage.lineage import Lineage

MADE = Markup(
    '<p class="lead" id="made">When and with what this was made is in the manifests of the store, not in this file, '
    "which is the same wherever it is made: mralign lineage shows it, and so does the copy of this page that a run "
    "leaves under reports/ in its store.</p>"
)
"""The place in the stored page."""


KEY_CHARS = 12
"""Of a report's key, as commands name it."""


class ShownBy(NamedTuple):
    """What only the run that shows a report knows."""

    name: str
    """Its name and id."""
    seconds: float
    """Since it began."""
    paid_usd: float
    """What it paid, or may have to pay, for draws, labels and verdicts."""
    commit: str
    """Of the checkout that it used; empty where there is none."""


class Provenance(NamedTuple):
    """What is told of a report beside its content; texts by name, in the order to show them."""

    facts: Mapping[str, str]
    commands: Mapping[str, str]
    """What it is for → a command to go on with."""


def provenance_of(lineage: Lineage, name: str = "", run: ShownBy | None = None) -> Provenance:
    """What the manifests behind a report say.

    Args:
        lineage: of the report.
        name: of the config; empty where it is not known.
        run: the run that shows it; None where none does.
    """
    manifests = list({each.path: each for each in _manifests(lineage)}.values())
    if not manifests:
        raise ArtifactError(
            f"report {lineage.ref.key[:KEY_CHARS]} can't be read: {lineage.problem}; run stage 'evaluate'"
        )
    first, last = (pick(each.created_at for each in manifests) for pick in (min, max))
    versions = {package: "" for each in manifests for package in each.package_versions}
    for package in versions:
        versions[package] = ", ".join(sorted({v for each in manifests if (v := each.package_versions.get(package))}))
    of_run = (
        {
            "run": run.name,
            "took": f"{_duration(run.seconds)}; what was in the store already took no time again",
            "paid": f"${run.paid_usd:,.2f} in this run",
            "commit": run.commit or "not a git checkout",
        }
        if run
        else {}
    )
    facts = {
        **of_run,
        "made": f"{last:%Y-%m-%d %H:%M} UTC; what it rests on since {first:%Y-%m-%d %H:%M} UTC",
        "MR-ALIGN": ", ".join(sorted({each.code_version for each in manifests})),
        **versions,
    }
    return Provenance(facts, _commands(name, lineage.ref.key))


def with_provenance(page: str, made: Provenance) -> str:
    """The report with its provenance in its place.

    Args:
        page: what ``report.render_report`` returned.
        made: what to tell.
    """
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td class="text">{_text(value)}</td></tr>'
        for name, value in made.facts.items()
    )
    steps = "".join(f"<li>{_text(what)}: <code>{_text(command)}</code></li>" for what, command in made.commands.items())
    caption = "When and with what this was made"
    table = f'<table id="made"><caption>{caption}</caption><tbody>{rows}</tbody></table>'
    box = f'<div class="scroll" tabindex="0" role="group" aria-label="Table: {caption}">{table}</div>'
    return page.replace(MADE, f"{box}<h3>What to do next</h3><ul>{steps}</ul>", 1)


def _manifests(lineage: Lineage) -> Iterator[Manifest]:
    if lineage.manifest:
        yield lineage.manifest
    for parent in lineage.parents:
        yield from _manifests(parent)


def _commands(name: str, key: str) -> dict[str, str]:
    config = name if name in preset_names() else "YOUR-CONFIG.yaml"
    return {
        "see what is cached, and what a change would compute": f"mralign run --config {config} --dry-run",
        "see what it was made from": f"mralign lineage --config {config} report/{key[:KEY_CHARS]}",
        "list the trained versions with their scores": f"mralign versions --config {config}",
        "take an adapter out, with its card": f"mralign export --config {config} --variant mr_align adapter",
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts: Sequence[str] = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(hours or minutes) + [f"{rest} s"]
    return " ".join(parts)


def _text(value: str) -> str:
    return html.escape("".join(each if each.isprintable() else "\ufffd" for each in value))

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


class Provenance(NamedTuple):
    """What is told of a report beside its content; texts by name, in the order to show them."""

    facts: Mapping[str, str]
    commands: Mapping[str, str]
    """What it is for → a command to go on with."""


def provenance_of(lineage: Lineage, *, run: str = "", commit: str = "", name: str = "") -> Provenance:
    """What the manifests behind a report say.

    Args:
        lineage: of the report.
        run: the run that shows it, by name and id; empty where none does.
        commit: of the checkout that the run used; empty where that is not known.
        name: of the config; empty where it is not known.
    """
    manifests = list({each.path: each for each in _manifests(lineage)}.values())
    if not manifests:
        raise ArtifactError(f"report {lineage.ref.key[:12]} can't be read: {lineage.problem}; run stage 'evaluate'")
    first, last = (pick(each.created_at for each in manifests) for pick in (min, max))
    versions = {package: "" for each in manifests for package in each.package_versions}
    for package in versions:
        versions[package] = ", ".join(sorted({v for each in manifests if (v := each.package_versions.get(package))}))
    count = f"{len(manifests)} artifact{'s' * (len(manifests) > 1)}"
    facts = {
        **({"run": run} if run else {}),
        "made": f"{last:%Y-%m-%d %H:%M} UTC; what it rests on since {first:%Y-%m-%d %H:%M} UTC",
        "work": f"{_duration(sum(each.wall_time_s for each in manifests))} in {count}",
        "paid": f"${sum(each.cost_usd for each in manifests):.2f}",
        **({"commit": commit} if commit else {}),
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
        "see what it was made from": f"mralign lineage --config {config} report/{key[:12]}",
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

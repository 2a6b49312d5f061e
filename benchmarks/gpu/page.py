"""The page: what each part showed, in one file that needs no other, for light and dark screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { --ink: #1c2430; --muted: #5b6675; --line: #dde2e8; --paper: #fff; --page: #f6f7f9; --good: #0f6b3a;
  --bad: #a8321a; --note: #b8890b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --muted: #9aa5b3; --line: #333b47; --paper: #1b212a;
  --page: #12161c; --good: #6fcf97; --bad: #ff9478; --note: #d6a92b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 34px 24px; }
h1 { font-size: 15px; font-weight: 600; letter-spacing: .04em; color: var(--muted); margin: 0 0 10px; }
.headline { font-size: 25px; line-height: 1.3; font-weight: 650; margin: 0 0 18px; text-wrap: balance; }
h2 { font-size: 18px; margin: 0; } p { max-width: 60em; margin: 6px 0; }
.lead { color: var(--muted); } .note { border-left: 3px solid var(--note); padding: 2px 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; margin: 8px 0 18px; }
th, td { padding: 5px 14px 5px 4px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--muted); font-weight: 600; font-size: 13px; } tbody th { font-weight: inherit; }
td.number { text-align: right; white-space: nowrap; } td { overflow-wrap: anywhere; }
article { background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  padding: 14px 18px; margin: 14px 0; }
.done { color: var(--good); } .failed, .cut, .died { color: var(--bad); } .skipped, .waiting { color: var(--muted); }
.state { font-weight: 600; white-space: nowrap; }
pre { font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--page); border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
summary { cursor: pointer; color: var(--muted); } a { color: inherit; }
.scroll { overflow-x: auto; }
@media (max-width: 480px) { main { padding: 20px 14px; } .headline { font-size: 20px; } th, td { padding-right: 8px; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MARKS = {"done": "✓", "failed": "✗", "cut": "✗", "died": "✗", "skipped": "–", "waiting": "…"}
FIGURES = (
    ("training", "projected_minutes", "minutes that the paper's job would take (6,973 traces, 3 epochs)"),
    ("training", "step_s", "seconds of an optimiser step of 16 rows"),
    ("training", "matrix_share_percent", "% of the measured matrix rate that a step reaches"),
    ("training", "peak_over_estimate", "peak of memory over the estimate"),
    ("trl", "step_ratio", "× as fast a step as TRL's at its best settings"),
    ("trl", "job_ratio", "× as fast a whole job"),
    ("sampler", "tokens_per_s_best", "tokens a second of the transformers sampler, at its best batch"),
    ("vllm", "tokens_per_s", "tokens a second of vLLM"),
)
"""What a reader asks first: part, value, and what it is."""


def render(record: Mapping[str, Any]) -> str:
    """The page of a run, also of one that is under way."""
    parts = record["parts"]
    body = [
        "<h1>MR-ALIGN on a CUDA card</h1>",
        f'<p class="headline">{escape(headline(record))}</p>',
        f'<p class="lead">{escape(_host(record))}</p>',
        *_notes([_stand_in(record), record.get("problem", "")]),
        _figures(parts) if record["device"] == "cuda" else "",
        _overview(parts),
        *(_part(name, part) for name, part in parts.items()),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>MR-ALIGN on a CUDA card</title>'
    )
    return f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body><main>\n' + (
        "\n".join(filter(None, body)) + "\n</main></body>\n</html>\n"
    )


def headline(record: Mapping[str, Any]) -> str:
    """How many parts did what.

    Example:
        >>> headline({"device": "cpu", "parts": {"card": {"status": "done"}, "trl": {"status": "cut"}}})
        'Stand-in on the CPU: 1 of 2 parts done, 1 cut (trl)'
    """
    parts = record["parts"]
    told = [f"{_with(parts, 'done')} of {len(parts)} parts done"]
    for status in ("failed", "died", "cut", "skipped", "waiting"):
        if names := [name for name, part in parts.items() if part["status"] == status]:
            told.append(f"{len(names)} {status} ({', '.join(names)})")
    where = "Stand-in on the CPU: " if record["device"] == "cpu" else ""
    return where + ", ".join(told)


def _with(parts: Mapping[str, Any], status: str) -> int:
    return sum(part["status"] == status for part in parts.values())


def _host(record: Mapping[str, Any]) -> str:
    card = record["parts"].get("card", {}).get("values", {}).get("name", "")
    host = record["host"]
    told = [card, f"torch {host['torch']}", f"Python {host['python']}", record["started"]]
    return " · ".join(filter(None, told))


def _stand_in(record: Mapping[str, Any]) -> str:
    if record["device"] == "cuda":
        return ""
    return (
        "Everything here ran in small shapes on a CPU, to show that each part works. No figure says anything about a "
        "card: on a host with one, make gpu measures it."
    )


def _notes(texts: Sequence[str]) -> list[str]:
    return [f'<p class="note">{escape(text)}</p>' for text in texts if text]


def _figures(parts: Mapping[str, Any]) -> str:
    found = [(parts.get(part, {}).get("values", {}).get(name), what) for part, name, what in FIGURES]
    rows = [f'<tr><td class="number">{_number(value)}</td><td>{escape(what)}</td></tr>' for value, what in found]
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _overview(parts: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th><a href="#{name}">{name}</a></th><td class="state {part["status"]}">{_state(part)}</td>'
        f'<td class="number">{part.get("seconds", 0):.0f}</td><td class="number">{part["limit_s"]:.0f}</td>'
        f"<td>{escape('; '.join(filter(None, [part.get('line', ''), part.get('why', '')])))}</td></tr>"
        for name, part in parts.items()
    ]
    head = "".join(f"<th>{each}</th>" for each in ("part", "ended", "seconds", "limit", "in one line"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _state(part: Mapping[str, Any]) -> str:
    return f"{MARKS[part['status']]} {part['status']}"


def _part(name: str, part: Mapping[str, Any]) -> str:
    ended = part.get("traceback", "")
    inside = [
        f'<h2>{name} <span class="state {part["status"]}">{_state(part)}</span></h2>',
        f'<p class="lead">{escape(part["shows"])}</p>',
        *_notes([part.get("why", ""), *part.get("notes", [])]),
        _table(("figure", "value"), [(_words(each), value) for each, value in part.get("values", {}).items()]),
        _table(
            ("check", "found", "at most", ""),
            [
                (check["name"], check["found"], check["limit"], "✓" if check["ok"] else "✗")
                for check in part.get("checks", [])
            ],
        ),
        f"<details><summary>how it ended</summary><pre>{escape(ended)}</pre></details>" if ended else "",
    ]
    return f'<article id="{name}">{"".join(inside)}</article>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    names = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(
        f"<tr><th>{escape(str(row[0]))}</th>{''.join(_cell(value) for value in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'<td class="number">{_number(value)}</td>' if is_number else f"<td>{escape(_text(value))}</td>"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> str:
    """A figure in three or four digits.

    Example:
        >>> _number(0.000123), _number(12.345), _number(123456), _number(None)
        ('1.2e-04', '12.3', '123,456', 'not measured')
    """
    if value is None:
        return "not measured"
    if isinstance(value, str):  # one that is not finite
        return escape(value)
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"

"""The page: what a run measured, how it was trained, and its trajectories, in one file.

No network, no further files: styles, script, plots and data are inline, and the page's own policy
forbids anything else to run. The `.html`, `.css` and `.js` files beside this module are its parts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from agentrl.record import Tree
from agentrl.report import charts
from agentrl.report.results import Result, Tile, details, groups, headline, tiles
from agentrl.report.svg import tone
from agentrl.report.text import embed, esc, flatten, is_number, percent, short, words
from agentrl.report.trajectories import Decode, payload
from agentrl.search.counts import statistics

MOST_ROWS = 400
"""Rows of a table of numbers; the files of the run have the rest."""


def render(
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    trees: Mapping[str, Sequence[Tree]],
    decode: Decode | None = None,
) -> str:
    """The report as HTML. A part without data is left out; any summary gives a page.

    `trees` are given by phase, in the order in which they are to be shown. `decode` turns token ids
    into text; without it the texts recorded in the trees are shown, not token by token.
    """
    data = payload(trees, decode)
    what, numbers, how = headline(summary)
    script = _part("search.js") + _part("page.js")
    sections = [
        _results(summary),
        _training(summary, metrics),
        _searches(trees),
        _viewer(data) if data["items"] else "",
        _tables(summary, config),
    ]
    return Template(_part("page.html")).substitute(
        title=esc(f"{what} {numbers} {how}".strip()),
        eyebrow=_eyebrow(summary, config),
        what=esc(what),
        numbers=_numbers(numbers),
        how=esc(how),
        details=esc(" ".join(details(summary))),
        tiles=_tiles(tiles(summary)),
        sections="\n".join(s for s in sections if s) or _EMPTY,
        style=_part("page.css") + _part("viewer.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=embed(data),
    )


_EMPTY = (
    '<section class="band"><p class="empty">This run has recorded nothing yet: no summary, no '
    "metrics, no trajectories.</p></section>"
)


@cache
def _part(name: str) -> str:
    return files("agentrl.report").joinpath(name).read_text(encoding="utf-8")


def _eyebrow(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Recipe, model and environment, as far as they are known."""
    items = []
    for name in ("recipe", "model", "env", "seed"):
        value = summary.get(name, config.get(name))
        if isinstance(value, str | int) and value != "":
            items.append(f"<span><b>{name}</b> {esc(value)}</span>")
    return "".join(items)


def _numbers(numbers: str) -> str:
    first, arrow, last = numbers.partition(" \u2192 ")
    if not arrow:
        return f'<span class="after">{esc(first)}</span>' if first else ""
    return (
        f'<span class="before">{esc(first)}</span> <span class="arrow" aria-label="to">'
        f'\u2192</span> <span class="after">{esc(last)}</span>'
    )


def _tiles(shown: Sequence[Tile]) -> str:
    return "".join(_tile(t, i) for i, t in enumerate(shown))


def _tile(tile: Tile, index: int) -> str:
    colour = f" c-{tone(tile.phase, index)}" if tile.phase else ""
    gauge = ""
    if tile.result is not None:
        r = tile.result
        low = r.accuracy if r.low is None else r.low
        high = r.accuracy if r.high is None else r.high
        gauge = (
            f'<div class="gauge" aria-hidden="true"><i style="width:{100 * r.accuracy:.2f}%"></i>'
            f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></b></div>'
        )
    note = f'<div class="tnote">{esc(tile.note)}</div>' if tile.note else ""
    return (
        f'<div class="tile{colour}"><div class="tlabel">{esc(tile.label)}</div>'
        f'<div class="tvalue">{esc(tile.value)}</div>{gauge}{note}</div>'
    )


def _band(name: str, title: str, lead: str, body: str) -> str:
    lead = f'<p class="lead">{esc(lead)}</p>' if lead else ""
    return f'<section class="band" id="{name}"><h2>{esc(title)}</h2>{lead}{body}</section>'


def _results(summary: Mapping[str, Any]) -> str:
    figures = [charts.accuracy(summary), *charts.scaling(summary), charts.kinds(summary)]
    body = "".join(figures)
    return _band("results", "Results", "", f'<div class="grid2">{body}</div>') if body else ""


def _training(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    panels = charts.training(metrics)
    left, chosen = [*panels[:1], charts.times(summary)], charts.selection(summary)
    beside = f'<div class="stack">{"".join(left)}</div>{chosen}' if chosen else "".join(left)
    body = beside + "".join(panels[1:])
    if body == "":
        return ""
    grid = f'<div class="grid2">{body}</div>'
    return _band("training", "Training", _facts(summary.get("training")), grid)


def _facts(training: object) -> str:
    """The numbers of a training in words, stage by stage where there are several."""
    if not isinstance(training, Mapping):
        return ""
    own = ", ".join(f"{words(str(k))} {short(v)}" for k, v in training.items() if is_number(v))
    stages = [f"{words(str(k))}: {inner}" for k, v in training.items() if (inner := _facts(v))]
    return "; ".join([own] * bool(own) + stages)


def _viewer(data: Mapping[str, Any]) -> str:
    total = sum(p["total"] for p in data["phases"])
    shown = sum(p["shown"] for p in data["phases"])
    if shown < total:
        lead = (
            f"{short(shown)} of {short(total)} attempts are in this file: in each phase the same "
            "problems first, then right and wrong ones in turn. The run's folder has all of them."
        )
    else:
        lead = f"All {short(total)} attempts of this run." if total > 1 else ""
    if not data["decoded"]:
        lead += (
            " " * bool(lead)
            + "No tokenizer was at hand, so texts are shown as recorded, not token by token."
        )
    return _band("trajectories", "Trajectories", lead, _part("viewer.html"))


_SEARCHED = {
    "searches": "searches",
    "states": "steps",
    "visited": "of them visited",
    "depth": "steps of an answer",
    "visits": "visits of a prompt",
    "sampled_tokens": "tokens sampled",
    "unique_tokens": "of them different",
    "calls": "calls run",
    "replayed": "replayed",
    "forked": "copied",
    "lost": "lost",
}


def _searches(trees: Mapping[str, Sequence[Tree]]) -> str:
    """What the searches of each phase did, where there were any."""
    found = {phase: s for phase, grown in trees.items() if (s := statistics(grown))}
    if not found:
        return ""
    head = "".join(f"<th>{h}</th>" for h in ("phase", "search", *_SEARCHED.values()))
    rows = [
        [words(phase), ", ".join(s["strategies"]), *(short(s[name]) for name in _SEARCHED)]
        for phase, s in found.items()
    ]
    cells = ("".join(f"<td>{esc(c)}</td>" for c in row) for row in rows)
    table = "".join(f"<tr>{row}</tr>" for row in cells)
    body = (
        f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>'
        f"<tbody>{table}</tbody></table></div>"
    )
    return _band("search", "Search", "", body)


def _tables(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    parts = [_results_table(summary)]
    for name, data in (("summary.json", summary), ("config.yaml", config)):
        rows = flatten(data)
        if not rows:
            continue
        cells = "".join(
            f"<tr><th>{esc(k)}</th><td>{esc(_exact(v))}</td></tr>" for k, v in rows[:MOST_ROWS]
        )
        more = f"<p>{len(rows) - MOST_ROWS} more rows.</p>" if len(rows) > MOST_ROWS else ""
        parts.append(
            f"<details><summary>{name} <small>{len(rows)} values</small></summary>"
            f'<div class="scroll"><table class="flat">{cells}</table></div>{more}</details>'
        )
    body = "".join(parts)
    return _band("numbers", "Numbers", "", body) if body else ""


def _exact(value: object) -> str:
    return "" if value is None else str(value)


_COLUMNS = (
    *("problems", "phase", "accuracy", "95 % interval", "n"),
    *("tool-call rate", "truncated", "failed"),
)


def _results_table(summary: Mapping[str, Any]) -> str:
    rows = []
    for group, results in groups(summary).items():
        rows += [_table_row(group, r) for r in results]
    if not rows:
        return ""
    head = "".join(f"<th>{h}</th>" for h in _COLUMNS)
    return (
        f'<div class="scroll"><table class="results"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _table_row(group: str, r: Result) -> str:
    cells = [
        words(group) or "main",
        words(r.name),
        percent(r.accuracy),
        r.interval or "\u2013",
        short(r.n),
        percent(r.tool_call_rate),
        _share(r.truncated),
        _share(r.failed),
    ]
    return "<tr>" + "".join(f"<td>{esc(c)}</td>" for c in cells) + "</tr>"


def _share(value: float | None) -> str:
    """A share if it is below 1, a count otherwise."""
    if value is None or value == 0:
        return "\u2013" if value is None else "0"
    return percent(value) if value < 1 else short(value)

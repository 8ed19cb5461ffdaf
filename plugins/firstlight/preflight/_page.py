"""The report as one page: no script, no second file, no request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.checks import Finding
from firstlight.preflight._charts import Line, histogram, layer_chart, line_chart
from firstlight.preflight._images import visible
from firstlight.preflight._png import address_of, png_of
from firstlight.preflight._words import (
    against,
    clean,
    facts_of,
    groups_of,
    headline,
    last_line,
    number,
    open_findings,
    plural,
    reading_of,
    state_of,
    tally_of,
    tried,
    verdict_of,
)

if TYPE_CHECKING:
    from firstlight.preflight import CheckResult, PreflightReport

_SIGNS = {"passed": "✓", "info": "ℹ", "warning": "▲", "error": "✗", "crashed": "!", "unfinished": "▲", "skipped": "–",
          "ignored": "~"}  # fmt: skip
_WORST = ("error", "crashed", "warning", "info", "passed", "ignored", "skipped")
_STYLES = ("own", "reference", "update", "constant")
# The page may load nothing, whatever a label or a message holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(report: PreflightReport) -> str:
    """Return the page: verdict, a light a group, diagnosis, pictures, checklist."""
    word, sentence = verdict_of(report)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    module = clean(report.environment.get("module", ""))
    title = f"Preflight{f' of {module}' if module else ''}: {word}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{style}</style></head><body><main>",
            f'<p class="eyebrow">firstlight preflight{f" of <code>{_text(module)}</code>" if module else ""}</p>',
            f'<header class="card verdict {word}"><span class="sign" aria-hidden="true">{_SIGNS[word]}</span>'
            f"<h1>{_text(_capital(sentence))}</h1><p class='muted'>{_text(tally_of(report))}</p></header>",
            _lights(report),
            _diagnosis(report),
            _figures(report.pictures),
            _checklist(report),
            _left_out(report),
            _footer(report),
            "</main></body></html>",
            "",
        ]
    )


def _text(text: object) -> str:
    return escape(clean(text))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _sign(state: str) -> str:
    return f'<span class="sign {state}" role="img" aria-label="{state}">{_SIGNS[state]}</span>'


def _lights(report: PreflightReport) -> str:
    items = []
    for group, results in groups_of(report).items():
        states = [state_of(report, result) for result in results]
        worst = min(states, key=_WORST.index)
        count = states.count(worst)
        said = plural(count, worst) if worst in ("error", "warning") else f"{count} of {len(states)} {worst}"
        items.append(f'<li class="{worst}"><b>{_sign(worst)} {group.capitalize()}</b><span>{said}</span></li>')
    return f'<ol class="lights" aria-label="groups of checks">{"".join(items)}</ol>' if items else ""


def _diagnosis(report: PreflightReport) -> str:
    diagnosis = report.diagnosis
    parts = []
    if diagnosis.root is not None:
        inner = _finding(diagnosis.root)
        if diagnosis.symptoms:
            symptoms = "".join(f"<li>{_headed(found)}</li>" for found in diagnosis.symptoms)
            count = plural(len(diagnosis.symptoms), "further finding")
            inner += f"<details open><summary>Explains {count}</summary><ul>{symptoms}</ul></details>"
        parts.append(f'<h2>Diagnosis</h2><section class="card">{inner}</section>')
    if diagnosis.others:
        inner = "".join(_finding(found, short=True) for found in diagnosis.others)
        parts.append(f'<h2>Beside it</h2><section class="card">{inner}</section>')
    return "".join(parts)


def _headed(finding: Finding) -> str:
    return f"{_sign(str(finding.severity))} <b>{_text(headline(finding))}</b>: {_text(finding.message)}"


def _finding(finding: Finding, *, short: bool = False) -> str:
    rows = [("Measured", against(finding))]
    rows += [] if short else [("Where", finding.where), ("Why", finding.why)]
    said = "".join(f"<dt>{label}</dt><dd>{_text(text)}</dd>" for label, text in rows if text)
    said += f'<dt>Change</dt><dd class="change">{_text(finding.advice)}</dd>'
    said += "" if short else f"<dt>Tried</dt><dd>{_text(tried(finding))}</dd>"
    head = f"<h3>{_sign(str(finding.severity))} {_text(headline(finding))}</h3>"
    return f'<div class="finding">{head}<p>{_text(_capital(finding.message))}</p><dl>{said}</dl></div>'


def _figures(pictures: Mapping[str, Any]) -> str:
    drawn = {"overfit": _overfit, "layers": _layers, "schedule": _schedule, "inputs": _inputs}
    figures = "".join(draw(pictures[name]) for name, draw in drawn.items() if pictures.get(name))
    return f'<h2>Pictures</h2><div class="figures">{figures}</div>' if figures else ""


def _figure(title: str, note: str, content: str) -> str:
    if not content:
        return ""
    return f'<figure class="card"><figcaption>{title}</figcaption><p class="muted">{_text(note)}</p>{content}</figure>'


def _overfit(picture: Mapping[str, Any]) -> str:
    lines = []
    for key, word in (("own", "yours"), ("reference", "reference")):
        losses = picture.get(key)
        if losses:
            name = picture.get(f"{key}_name", "")
            label = f"{word}{f', {name}' if name else ''}: ends at {number(float(losses[-1]))}"
            lines.append(Line(label, range(1, len(losses) + 1), losses, key))
    constant = picture.get("constant")
    if lines and constant is not None and math.isfinite(constant):
        last = max(line.xs[-1] for line in lines)
        lines.append(Line(f"best constant answer: {number(float(constant))}", [0, last], [constant] * 2, "constant"))
    note = "Loss on one batch, trained on copies. Below the dotted line the network uses its inputs."
    chart = line_chart("Loss on one batch by step", lines, x_label="optimizer step", y_label="loss") if lines else ""
    return _figure("Can one batch be learned?", note, chart)


def _schedule(picture: Mapping[str, Any]) -> str:
    steps = picture.get("steps", [])
    rates = picture.get("rates", {})
    same: dict[tuple[float, ...], list[str]] = {}
    for name, values in rates.items():  # groups that share one rate are one line
        same.setdefault(tuple(values), []).append(str(name))
    lines = [
        Line(", ".join(names), steps, values, _STYLES[index % len(_STYLES)])
        for index, (values, names) in enumerate(same.items())
    ]
    title = "Learning rate by step"
    chart = line_chart(title, lines, x_label="optimizer step", y_label="rate", zero=True) if lines and steps else ""
    return _figure("The schedule of the run", "The real scheduler, stepped as the run will step it.", chart)


def _inputs(picture: Mapping[str, Any]) -> str:
    labels = [str(label) for label in picture.get("labels", [])]
    title = "What the model receives"
    spread = _spread(picture.get("histogram", {}))
    if picture.get("images"):
        images, low, high = visible(picture["images"])
        shown = []
        for index, pixels in enumerate(images):
            label = labels[index] if index < len(labels) else ""
            said = f"input {index + 1}" + (f", label {label}" if label else "")
            source = address_of(png_of(pixels))
            shown.append(f'<li><img alt="{_text(said)}" src="{source}"><span>{_text(label)}</span></li>')
        note = f"After all transforms; black is {number(low)}, white {number(high)}. Below each its label."
        return _figure(title, note, f'<ul class="gallery">{"".join(shown)}</ul>{spread}')
    if picture.get("tokens"):
        rows = "\n".join(" ".join(_text(token) for token in row) for row in picture["tokens"])
        return _figure(title, "The first tokens of the first samples.", f'<div class="tokens code">{rows}</div>')
    return _figure(title, "The numbers of one batch, after all transforms.", spread)


def _spread(picture: Mapping[str, Any]) -> str:
    edges, counts = picture.get("edges", []), picture.get("counts", [])
    if len(edges) < 2 or not counts:
        return ""
    return histogram("Numbers that the model receives", edges, counts, x_label="value that the model receives")


def _layers(picture: Mapping[str, Any]) -> str:
    names = picture.get("names", [])
    words = (("gradient", "gradient / weight", "own"), ("update", "update / weight, a step", "update"))
    columns = [
        (label, [float(value) for value in picture[key]], style)
        for key, label, style in words
        if len(picture.get(key, ())) == len(names)
    ]
    note = "Against the size of the weights. A step usually changes them by 0.0001 to 0.1 of themselves."
    chart = layer_chart("Gradient and update by layer", names, columns) if names and columns else ""
    return _figure("Gradient and update by layer", note, chart)


def _checklist(report: PreflightReport) -> str:
    rows = []
    for group, results in groups_of(report).items():
        rows.append(f'<tr><th colspan="4" scope="rowgroup">{group.capitalize()}</th></tr>')
        rows += [_row(report, result) for result in results]
    if not rows:
        return ""
    return f'<h2>Checklist</h2><div class="card scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _row(report: PreflightReport, result: CheckResult) -> str:
    state = state_of(report, result)
    found = open_findings(report, result)
    said = "; ".join(f"{against(one)}{f' at {one.where}' if one.where else ''}" for one in found)
    if not said:
        skipped = f"not made: {result.reason}" if state == "skipped" else state
        said = reading_of(report, result) if state == "passed" else skipped
    code, name = f"{_sign(state)} <code>{_text(result.code)}</code>", f"<code>{_text(result.name)}</code>"
    cells = [code, name, _text(result.title), _text(said)]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _left_out(report: PreflightReport) -> str:
    ignored = (f"<b>{_text(headline(past.finding))}</b>: {_text(past.reason)}" for past in report.ignored)
    crashed = (
        f"{_text(code)}: {_text(last_line(trace))}"
        f"<details><summary>Traceback</summary><pre>{escape(trace)}</pre></details>"
        for code, trace in report.crashed.items()
    )
    parts = (("Ignored", ignored), ("Suppressions", map(_text, report.notes)), ("Failed themselves", crashed))
    return "".join(_list(title, items) for title, items in parts)


def _list(title: str, items: Iterable[str]) -> str:
    inner = "".join(f"<li>{item}</li>" for item in items)
    return f'<h2>{title}</h2><ul class="card plain-list">{inner}</ul>' if inner else ""


def _footer(report: PreflightReport) -> str:
    facts = " · ".join(f"{_text(key)} {_text(value)}" for key, value in facts_of(report))
    return f"<footer>{facts}</footer>" if facts else ""

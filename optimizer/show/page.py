"""The report's page: elements that escape by construction, the style, the frame.

The page is a tree of elements and becomes text in one place, so that no name, label or path can
turn into markup, nor command the terminal of who looks at the file. It needs nothing from outside:
no script, no font, no address.
"""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

from storage import printable

Part = Element | str

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #141413; --soft: #57564f;
  --line: #e0dfd8; --up: #2a78d6; --down: #d8413f; --raised: #f3f2ee; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #1a1a19; --ink: #f4f3ee;
  --soft: #b9b8ae; --line: #3a3a37; --up: #4c97ee; --down: #ee7370; --raised: #252523; } }
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 47.5rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, ul { margin: .4rem 0; } .soft, figcaption { color: var(--soft); }
.verdict { background: var(--raised); border-left: .35rem solid var(--soft); margin: 1rem 0;
  padding: .7rem 1rem; } .verdict p:first-child { font-size: 1.15rem; font-weight: 600; }
.verdict.better { border-color: var(--up); } .verdict.worse { border-color: var(--down); }
figure { margin: .6rem 0 1rem; } figcaption { font-size: .875rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; } svg { height: auto; max-width: 100%; }
/* On a phone a figure keeps its size, so that its labels can be read, and is moved sideways. */
@media screen and (max-width: 700px) { figure { overflow-x: auto; } svg { max-width: none; } }
table { border-collapse: collapse; font-size: .875rem; margin: .6rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .9rem .2rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; } th { font-weight: 600; }
td.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
pre { background: var(--raised); font-size: .8rem; overflow-x: auto; padding: .7rem;
  white-space: pre-wrap; } summary { cursor: pointer; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .soft { fill: var(--soft); }
svg .name { font-weight: 600; }
.grid { stroke: var(--line); } .zero { stroke: var(--soft); stroke-width: 1.5; }
.box { fill: none; stroke: var(--soft); stroke-dasharray: 5 4; }
.up { fill: var(--up); } .down { fill: var(--down); } .hole { fill: var(--page); }
.rim { fill: none; stroke: var(--ink); } .chosen { stroke-width: 2.5; }
.lost, .bar { stroke: var(--ink); fill: none; }
.lost { stroke-width: 1.5; } .bar { stroke-width: 1; } .band { fill: var(--up); opacity: .18; }
.curve { fill: none; stroke: var(--up); stroke-width: 2; } .mean { fill: var(--ink); }
.interval { stroke: var(--ink); stroke-width: 2.5; } .seed { fill: var(--up); opacity: .55; }
@media print { body { font-size: 11pt; max-width: none; padding: 0; }
  figure, .verdict, tr { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; } }
"""


def tag(name: str, /, *inside: Part | Iterable[Part], **attributes: object) -> Element:
    """Return an element; `class_` means class and `font_size` font-size, None leaves one out."""
    element = Element(
        name,
        {
            key.rstrip("_").replace("_", "-"): _number(value)
            if _is_float(value)
            else printable.lines(str(value))
            for key, value in attributes.items()
            if value is not None
        },
    )
    for part in inside:
        if isinstance(part, Element | str):
            _append(element, part)
        else:
            for each in part:
                _append(element, each)
    return element


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> Element:
    """Return a table; `numbers` are the columns that are set to the right."""
    return tag(
        "table",
        tag("thead", tag("tr", (tag("th", head, scope="col") for head in heads))),
        tag(
            "tbody",
            (
                tag(
                    "tr",
                    (
                        tag("td", cell, class_="number" if place in numbers else None)
                        for place, cell in enumerate(row)
                    ),
                )
                for row in rows
            ),
        ),
    )


def html_page(title: str, *inside: Part | Iterable[Part]) -> str:
    """Return the text of a whole page in HTML."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE),
    )
    root = tag("html", head, tag("body", *inside), lang="en")
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _append(element: Element, part: Part) -> None:
    if isinstance(part, Element):
        element.append(part)
    elif len(element):
        element[-1].tail = (element[-1].tail or "") + printable.lines(part)
    else:
        element.text = (element.text or "") + printable.lines(part)


def _is_float(value: object) -> bool:
    return isinstance(value, float)


def _number(value: object) -> str:
    return f"{value:.4g}" if abs(float(str(value))) < 1 else f"{float(str(value)):.1f}"

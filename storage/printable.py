r"""Text of unknown origin, made fit to be shown: what would command a terminal is written out.

Host names, devices, names in presets and errors of servers are anybody's text. Shown as it is, it
could clear a terminal, give it another title, forge a line (ESC, CR, C1 controls) or let words
appear in another order (bidirectional overrides, Unicode TR 36). `\x1b` instead does nothing.
"""

import re

_CONTROLS = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 but for tabs and line feeds
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, overrides and isolates
    r"\u2028\u2029"  # separators of lines and paragraphs
    r"\ud800-\udfff"  # halves of characters: names of files that are not in the locale's encoding
)
_LINES, _LINE = re.compile(f"[{_CONTROLS}]"), re.compile(rf"[{_CONTROLS}\t\n]")


def lines(text: str) -> str:
    """Return a text of several lines, harmless."""
    return _LINES.sub(_escape, text)


def line(text: object) -> str:
    """Return what something says as one harmless line."""
    return _LINE.sub(_escape, str(text))


def json(document: str) -> str:
    """Return the text of a JSON document, of the same value and harmless."""
    return _LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()

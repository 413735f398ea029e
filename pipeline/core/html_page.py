"""A report as one HTML page that needs nothing else, in light and dark.

Everything that comes from data is text: callers escape it, or give it to a function that does.
"""

from collections.abc import Callable, Iterator, Sequence
from html import escape

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--dim:#59636e;--paper:#fff;--card:#f6f8fa;
--line:#d1d9e0;--good:#4c7a00;--bar:#76b900;--grey:#9aa0a6;--bad:#c62828}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;--paper:#0d1117;--card:#161b22;
--line:#30363d;--good:#8fd61a;--bad:#ff7b72}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:72rem;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.5rem 0 .5rem}
p{margin:.4rem 0}.dim{color:var(--dim)}
.verdict{display:inline-block;margin:1rem 0 0;padding:.25rem .75rem;border-radius:1rem;
border:1px solid currentColor;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600;color:var(--dim);font-size:.85rem}
td.n,th.n{text-align:right;white-space:nowrap}
td small{display:block;color:var(--dim)}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:.4rem .9rem;
align-items:center}
.track{position:relative;height:1rem;background:var(--card);border-radius:3px}
.fill{position:absolute;inset:0 auto 0 0;background:var(--bar);border-radius:3px}
.fill.base{background:var(--grey)}
.range{position:absolute;top:45%;height:2px;background:var(--ink)}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;background:var(--card)}
summary{padding:.5rem .8rem;cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1rem;margin:0;
padding:.2rem .9rem .9rem}
dt{color:var(--dim)}dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
svg{max-width:24rem;width:100%;height:auto}
svg.long{max-width:100%}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;padding:.2rem .9rem .9rem}
mark{background:#b7ebc0;color:#0b3d16}mark.worse{background:#f6c9c9;color:#5a1010}
footer{margin-top:3rem;color:var(--dim);font-size:.85rem}
"""


def html_page(title: str, body: str) -> str:
    """The page. body: HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A part with its heading; nothing if it is empty. content: HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """left: columns that hold text; the others hold numbers. Cells are HTML."""

    def line(cells: Sequence[str], tag: str, shown: Callable[[str], str]) -> Iterator[str]:
        for place, cell in enumerate(cells):
            yield f"<{tag}{' class=n' * (place >= left)}>{shown(cell)}</{tag}>"

    top = "".join(line(head, "th", escape))
    body = "".join(f"<tr>{''.join(line(row, 'td', str))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def short(text: str, most: int = 110) -> str:
    """The beginning of a text, on one line; not escaped."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"

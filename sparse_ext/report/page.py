# SPDX-License-Identifier: MIT
"""HTML in one file: headings, figures, tables, facts; no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from solo.utils.whole_files import write_text
from sparse_ext.report.plots import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CSS = """
:root{--ink:#1f2937;--soft:#6b7280;--line:#e5e7eb;--accent:#2563eb;--paper:#f6f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.5;
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:27px;margin:0 0 4px}h2{font-size:20px;margin:40px 0 6px}
p.lead{color:var(--soft);margin:0 0 20px;max-width:80ch}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px;margin-top:14px}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:16px 18px;min-width:0}
.card.wide{grid-column:1/-1}.card h3{margin:0 0 8px;font-size:15px}
.card img{width:100%;height:auto;display:block}.card.wide img{max-width:900px}
.card p{color:var(--soft);font-size:13px;margin:8px 0 0;max-width:95ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:7px 12px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:12.5px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;font-weight:600}
tr:last-child td{border-bottom:0}tr.strong td{background:#eff5ff}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:12px 20px;margin:0}
dt{color:var(--soft);font-size:12.5px}dd{margin:0;font-weight:600;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:12.5px;margin-top:40px}
@media(max-width:520px){.grid{grid-template-columns:1fr}main{padding:20px 12px}}
"""


class Page:
    """A page that is put together from top to bottom.

    Args:
        title: of the page.
        lead: a sentence or two below it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>", _lead(lead)]
        self._grid: list[str] = []

    def heading(self, text: str, lead: str = "") -> None:
        """Start a new section."""
        self._flush()
        self._parts += [f"<h2>{escape(text)}</h2>", _lead(lead)]

    def figure(self, title: str, figure: Figure, caption: str = "", wide: bool = False) -> None:
        """Add a figure; its caption says what was measured and how."""
        image = f'<img src="{data_uri(figure)}" alt="{escape(title)}">'
        self._card(title, image, caption, wide)

    def facts(self, title: str, facts: Mapping[str, str], caption: str = "") -> None:
        """Add a list of named values."""
        pairs = "".join(
            f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
        )
        self._card(title, f"<dl>{pairs}</dl>", caption, wide=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str = "",
        strong: int | None = None,
    ) -> None:
        """Add a table; `strong` is the row to set off."""
        head = "".join(f"<th>{escape(text)}</th>" for text in columns)
        body = ""
        for index, row in enumerate(rows):
            cells = "".join(f"<td>{escape(text)}</td>" for text in row)
            body += f"<tr{' class=strong' if index == strong else ''}>{cells}</tr>"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self._card(title, f'<div class="scroll">{table}</div>', caption, wide=True)

    def html(self) -> str:
        """The whole document."""
        self._flush()
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_CSS}</style></head><body><main>"
            + "\n".join(part for part in self._parts if part)
            + "<footer>Written by sparse_ext.report (solo-learn-sparse).</footer>"
            + "</main></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the document; a file that was there is replaced at once or not at all."""
        return write_text(path, self.html())

    def _card(self, title: str, content: str, caption: str, wide: bool) -> None:
        note = f"<p>{escape(caption)}</p>" if caption else ""
        kind = "card wide" if wide else "card"
        self._grid.append(f'<div class="{kind}"><h3>{escape(title)}</h3>{content}{note}</div>')

    def _flush(self) -> None:
        if self._grid:
            self._parts.append('<div class="grid">' + "\n".join(self._grid) + "</div>")
        self._grid = []


def _lead(text: str) -> str:
    return f'<p class="lead">{escape(text)}</p>' if text else ""

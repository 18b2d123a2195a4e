# SPDX-License-Identifier: MIT
"""HTML in one file: headings, figures, tables, facts; nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from solo.files.whole import write_text
from sparse_ext.report.plots import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html")


class Page:
    """A page that is put together from top to bottom; `page.html` says what it looks like.

    Args:
        title: of the page.
        lead: a sentence or two below it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._sections: list[dict[str, Any]] = []
        self.heading(title, lead)

    def heading(self, text: str, lead: str = "") -> None:
        """Start a new section of the page."""
        self._sections.append({"title": text, "lead": lead, "cards": []})

    def figure(self, title: str, figure: Figure, caption: str = "", wide: bool = False) -> None:
        """Add a figure; its caption says what was measured and how."""
        self._card(title, caption, wide=wide, image=data_uri(figure))

    def verdict(self, figures: Sequence[tuple[str, str, str]]) -> None:
        """Add the figures that matter most, large: (name, value with unit, what it is of)."""
        if figures:
            self._card("", "", verdict=figures)

    def facts(self, title: str, facts: Mapping[str, str], caption: str = "") -> None:
        """Add a list of named values to the page."""
        self._card(title, caption, facts=facts)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str = "",
        strong: int | None = None,
        sortable: bool = False,
        links: Sequence[str] = (),
        keys: Sequence[Mapping[str, Any]] = (),
        extra: int = 0,
        text: bool = False,
    ) -> None:
        """Add a table to the page.

        Args:
            title: above it.
            columns: heads.
            rows: cells.
            caption: below it.
            strong: the row to set off.
            sortable: a click on a head sorts by that column.
            links: of the first cell of each row.
            keys: line and dot of each row, as matplotlib options, drawn before its first cell.
            extra: how many of the last columns a narrow window leaves out.
            text: all columns stand to the left, whatever they hold.
        """
        cells = list(zip(*rows, strict=True))
        texts = [i for i, column in enumerate(cells) if text or not all(map(_number, column))]
        content: dict[str, Any] = {"columns": columns, "rows": rows, "strong": strong}
        content |= {
            "sortable": sortable,
            "links": links,
            "extra": range(len(columns) - extra, len(columns)),
        }
        content["breaks"], content["swatches"] = text, [swatch(key) for key in keys]
        self._card(title, caption, texts=texts, **content)

    def key(self, styles: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what the lines and dots of the figures below mean: matplotlib options by name."""
        self._card("", "", key={name: swatch(style) for name, style in styles.items()})

    def html(self) -> str:
        """The whole page as an HTML document."""
        from jinja2 import Environment

        env = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
        env.filters["breakable"] = breakable
        template = env.from_string(TEMPLATE.read_text(encoding="utf-8"))
        cards = [card for section in self._sections for card in section["cards"]]
        sorting = any(card.get("sortable") for card in cards)
        return template.render(title=self.title, sections=self._sections, sorting=sorting)

    def write(self, path: str | Path) -> Path:
        """Write the document; a file that was there is replaced at once or not at all."""
        return write_text(path, self.html())

    def _card(self, title: str, caption: str, wide: bool = True, **content: Any) -> None:
        card = {"title": title, "caption": caption, "wide": wide, **content}
        self._sections[-1]["cards"].append(card)


_DOTS = {
    "o": '<circle cx="13" cy="5" r="3.4"/>',
    "s": '<rect x="9.8" y="1.8" width="6.4" height="6.4"/>',
    "^": '<path d="M13 1l4 7.4h-8z"/>',
}


def swatch(style: Mapping[str, Any]) -> Markup:
    """A piece of line with a dot, as matplotlib draws it by these options, as SVG."""
    line, colour = style.get("linestyle", "-"), style.get("color", "")
    dashes = f' stroke-dasharray="{" ".join(map(str, line[1]))}"' if line != "-" else ""
    return Markup(
        f'<svg class="swatch" width="26" height="10" fill="{colour}" stroke="{colour}">'
        f'<path d="M0 5h26" stroke-width="2"{dashes}/>{_DOTS[style.get("marker", "o")]}</svg>'
    )


def breakable(text: str) -> Markup:
    """`text` as HTML whose lines may break behind `.`, `/`, `,` and `_`, but not in a number."""
    parts = re.split(r"(?<=[._/,])(?=\D)", text)
    return Markup("<wbr>").join(Markup.escape(part) for part in parts)


def _number(cell: str) -> bool:
    """Whether a cell stands to the right, as figures with their units do."""
    return not cell or cell[0] in "0123456789-+.–" or cell in ("dense", "nan")

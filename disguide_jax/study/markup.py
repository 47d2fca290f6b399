"""HTML and SVG as functions, in which everything that is not markup is escaped."""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """An element as markup.

    Args:
      name: such as "p".
      *children: markup as it is; any other text is escaped.
      **attributes: of the element, escaped; "class_" is class, "stroke_width" is stroke-width. One
        that is None is left out.
    """
    named = "".join(
        f' {key.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    start = f"<{name}{named}>"
    if name in ("meta", "img"):
        return Html(start)
    return Html(f"{start}{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Elements and texts behind each other; the texts are escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def unbroken(sentence: str) -> str:
    """The same with numbers kept on one line with what belongs to them."""
    return re.sub(r" (?=%)| (?=±)|(?<=±) ", "\N{NO-BREAK SPACE}", sentence)


class Entry(NamedTuple):
    """One cell of a table."""

    text: str  # "" for a value that is missing
    value: float | None = None  # by which it is sorted; without one by its text
    note: str = ""  # a second line, smaller
    link: str = ""  # the id of what it leads to


class Column(NamedTuple):
    """One column of a table."""

    title: str
    number: bool = False  # sorted by values, and set to the right
    long: bool = False  # sentences

    @property
    def style(self) -> str | None:
        """A class of the page's style sheet."""
        return "number" if self.number else "text" if self.long else None


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Entry]]) -> Html:
    """A table in a box of its own, that readers sort by its headings.

    Args:
      caption: what it shows, in words.
      columns: from left to right; the first one names the rows.
      rows: as many entries each as there are columns.
    """
    heads = [
        tag(
            "th",
            tag("button", column.title, type="button"),
            scope="col",
            class_=column.style,
        )
        for column in columns
    ]
    body = [
        tag("tr", *(_entry(e, c, first=c is columns[0]) for e, c in zip(row, columns, strict=True)))
        for row in rows
    ]
    whole = tag(
        "table",
        tag("caption", unbroken(caption)),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
    )
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _entry(entry: Entry, column: Column, *, first: bool) -> Html:
    """A cell; a number without a value counts as missing, whatever it says."""
    text = entry.text or "\N{EN DASH}"
    content = [tag("a", text, href=f"#{entry.link}") if entry.link else text]
    if entry.note:
        content.append(tag("small", entry.note))
    missing = entry.value is None if column.number else not entry.text
    return tag(
        "th" if first else "td",
        *content,
        scope="row" if first else None,
        class_=column.style,
        data_value="" if missing else entry.value,
    )

"""Reports of runs made by hand, and what their HTML and Markdown hold, read by means that share nothing with them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from analysis.runs import Run
from fracture.report.page import outputs
from tests.fracture.report_runs import Made, write_run

VARIANTS = {"sham": 0.0, "half": 0.5, "gone": None}
QUICK = ("routes", "accuracy_and_calibration")
VOID = {"meta", "img", "input", "br", "link"}


class Html(HTMLParser):
    """A page taken apart.

    Attributes:
        elements: every element's tag and attributes.
        headings: level and text.
        tables: a table's name (its region's label, or the heading before it) → rows of cells' texts, heads included.
        scripts: type → text.
        text: all that is read, without scripts and styles.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.open: list[str] = []
        self._label = ""
        self._script = ""
        self.feed(page)
        self.close()
        assert self.open == [], "elements that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        if found.get("role") == "region":
            self._label = str(found["aria-label"])
        if tag == "table":
            name = self._label or f"after {self.headings[-1][1]}"
            assert name not in self.tables, f"two tables are called {name!r}"
            self.rows = self.tables[name] = []
            self._label = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self._script = found.get("type") or "code"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        inner = self.open[-1] if self.open else ""
        if inner == "script":
            assert self._script not in self.scripts, "two scripts of one kind"
            self.scripts[self._script] = data
            return
        if inner == "style":
            return
        self.text += data
        if any(re.fullmatch("h[1-6]", tag) for tag in self.open):
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data
        if any(tag in ("td", "th") for tag in self.open):
            separated = "" if inner in ("td", "th") else " "
            self.rows[-1][-1] = (self.rows[-1][-1] + separated + data.replace("\N{NO-BREAK SPACE}", " ")).strip()

    @property
    def traces(self) -> Any:
        """What the trace viewer is given."""
        return json.loads(self.scripts["application/json"])

    def cell(self, table: str, group: str, row: str, column: str) -> str:
        """A cell by the heads of table, group of rows, row and column."""
        rows = self.tables[table]
        at = next(place for place, cells in enumerate(rows) if cells == [group]) + 1 if group else 1
        here = next(cells for cells in rows[at:] if cells[0] == row)
        return here[rows[0].index(column)]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: rows of cells, as they stand there."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                tables.append([])
            # An escaped bar is no border.
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        inside = line.startswith("|")
    return tables


def made(tmp_path: Path, edit: Any = None, **how: Any) -> Run:
    """A run with three variants, or as it is said."""
    return write_run(tmp_path / "run", Made(how.pop("variants", VARIANTS), **how), edit)


def page(run: Run) -> Html:
    """Its report."""
    return Html(outputs(run)["report.html"].decode())


def adds_up(cells: list[str]) -> bool:
    """Whether what went in came out, or was left out for a reason."""
    read, scored = int(cells[1]), int(cells[2].split()[0])
    return read == scored + sum(int(n) for n in re.findall(r"(\d+) ×", cells[3]))


def account_tables(html: Html) -> list[list[list[str]]]:
    """The tables that say what became of the prompts."""
    return [rows for rows in html.tables.values() if rows[0][1:] == ["went in", "came out", "left out, and why"]]

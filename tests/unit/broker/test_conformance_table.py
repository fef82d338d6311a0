"""docs/conformance.md says of every normative statement of MQTT 3.1.1 which test shows it. Here that is checked: that
none is missing, that the tests exist, and that each names the statement that it is said to show."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[3]
NUMBER: Final = re.compile(r"MQTT-\d[.-]\d+\.\d+-\d+")

# Appendix B of the standard: how many statements each section has, numbered from 1.
SECTIONS: Final = {
    "1.5.3": 3, "2.2.2": 2, "2.3.1": 7, "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5, "3.2.0": 1, "3.2.2": 6,
    "3.3.1": 12, "3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1, "3.8.1": 1, "3.8.3": 3, "3.8.4": 6, "3.9.3": 2,
    "3.10.1": 1, "3.10.3": 2, "3.10.4": 6, "3.12.4": 1, "3.14.1": 1, "3.14.4": 3, "4.1.0": 2, "4.3.1": 1, "4.3.2": 2,
    "4.3.3": 2, "4.4.0": 1, "4.5.0": 2, "4.6.0": 6, "4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2, "6.0.0": 4,
    "7.0.0": 2, "7.1.1": 1, "7.1.2": 1,
}  # fmt: skip
MISSPELT: Final = "MQTT-3-8.3-4"
"""One number is written so in the standard itself."""


class Line(NamedTuple):
    """A line of the table. `tests`: file and function; none for a statement that does not bind a server."""

    number: str
    tests: list[tuple[str, str]]
    said: str


def table() -> list[Line]:
    """The lines of the page that begin with a number."""
    lines = []
    for line in (ROOT / "docs/conformance.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and NUMBER.fullmatch(cells[0]):
            lines.append(Line(cells[0], re.findall(r"`(\w+\.py)` (\w+)", cells[2]), cells[2]))
    return lines


@functools.cache
def named_in(file: str) -> dict[str, set[str]]:
    """For each test of a file the statements that it names, or that its table of cases names."""
    found = list((ROOT / "tests").rglob(file))
    assert len(found) == 1, f"{file} should be one file: {found}"
    source = found[0].read_text(encoding="utf-8")
    tree = ast.parse(source)
    tables = {
        target.id: ast.get_source_segment(source, node) or ""
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    named = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            used = {name.id for mark in node.decorator_list for name in ast.walk(mark) if isinstance(name, ast.Name)}
            marks = [ast.get_source_segment(source, mark) or "" for mark in node.decorator_list]
            texts = [ast.get_source_segment(source, node) or "", *marks, *(tables.get(name, "") for name in used)]
            named[node.name] = set(NUMBER.findall("\n".join(texts)))
    return named


def test_every_statement_is_there_once() -> None:
    expected = {f"MQTT-{section}-{n}" for section, count in SECTIONS.items() for n in range(1, count + 1)}
    numbers = [line.number for line in table()]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == {*expected, MISSPELT}


@pytest.mark.parametrize("line", table(), ids=lambda line: line.number)
def test_what_is_said_to_show_a_statement_names_it(line: Line) -> None:
    if not line.tests:
        assert line.said.startswith(("binds the client", "does not apply: ")), "a test, or why there is none"
    for file, test in line.tests:
        assert line.number in named_in(file).get(test, set()), f"{file} {test} does not name it, or is not there"

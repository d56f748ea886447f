"""Reads code blocks, commands and tables from the documentation."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

Row = list[str]


def blocks(language: str) -> list[Any]:
    """Every code block in `language`, as a pytest parameter named `<document>-<number>`."""
    return [
        pytest.param(text, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, text in enumerate(_blocks(document, language))
    ]


def commands(program: str) -> list[list[str]]:
    """The arguments of every call of `program` in bash blocks, up to `|`, `&&` or `;`."""
    found = []
    for document in DOCUMENTS:
        for text in _blocks(document, "bash"):
            for line in re.sub(r"\\\n", " ", text).splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
                lexer.whitespace_split = True
                words = list(lexer)
                if words and words[0] == program:
                    end = next((index for index, word in enumerate(words) if word in ("|", "&&", ";")), len(words))
                    found.append(words[1:end])
    return found


def options(words: list[str], name: str) -> list[str]:
    """The value of every occurrence of the option `name`."""
    return [value for word, value in pairwise(words) if word == name]


def section(text: str, title: str) -> str:
    """The text of the section with this second-level heading."""
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def tables(text: str) -> list[list[Row]]:
    """The cells of every table, without its headings."""
    found: list[list[Row]] = []
    in_table = False
    for line in text.splitlines():
        if not line.startswith("|"):
            in_table = False
        elif not in_table:
            in_table = True
            found.append([])
        elif not line.startswith(("|--:", "|---")):
            found[-1].append(_cells(line))
    return found


def table_with(text: str, first_cell: str) -> list[Row]:
    """The rows of the only table that has a row with this first cell."""
    (table,) = (table for table in tables(text) if any(row[0] == first_cell for row in table))
    return table


def _cells(line: str) -> Row:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)

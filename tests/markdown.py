"""What tests read out of the documents: their code blocks, the commands in them, and their tables."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[Any]:
    """Every code block in this language, as parameters named after where it stands."""
    return [
        pytest.param(text, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, text in enumerate(_blocks(document, language))
    ]


def commands(program: str) -> list[list[str]]:
    """The words of every call of a program in the documents, without its name, up to a pipe."""
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
    """The value of every option of this name."""
    return [value for word, value in pairwise(words) if word == name]


def rows(document: Path, headings: str) -> list[list[str]]:
    """The cells of every table under exactly this line of headings."""
    found, reading = [], False
    for line in document.read_text().splitlines():
        if not line.startswith("|"):
            reading = False
        elif line == headings:
            reading = True
        elif reading and not line.startswith("|---"):
            found.append([cell.strip() for cell in line[1:-1].split("|")])
    return found


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)

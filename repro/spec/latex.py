"""A LaTeX paper, read for its tables: which files it takes in, and what its tabulars hold. No TeX is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repro.errors import InputError, Problem, UsageError

_TAKEN = re.compile(r"\\(?:input|include|subfile)\s*\{([^{}]+)\}")
_TABULAR = re.compile(r"\\begin\{(tabularx?\*?|longtable|tblr)\}(.*?)\\end\{\1\}", re.S)
_RULES = re.compile(r"\\(?:toprule|midrule|bottomrule|hline|cline\{[^}]*\}|cmidrule(?:\([^)]*\))?\{[^}]*\})")
_DROPPED = re.compile(
    r"\\(?:cite[a-z]*|ref|label|footnote|vspace|hspace|rowcolor|cellcolor|color|textcolor)(?:\[[^]]*\])*\{[^{}]*\}"
)
_KEPT = re.compile(r"\\[a-zA-Z]+\*?\s*(?:\[[^]]*\])?\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One ``\\input``: where it stands and which file it takes in."""

    file: Path
    line: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class TypedCell:
    """One cell of a tabular: its text without markup, and the line on which it stands."""

    text: str
    line: int
    span: int = 1


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """A tabular that was typed by hand: rows of cells."""

    file: Path
    line: int
    rows: tuple[tuple[TypedCell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of the paper, without comments."""

    path: Path
    text: str


def _without_comments(text: str) -> str:
    """Comments become nothing; lines stay lines."""
    return re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*", r"\1", text)


def read(path: Path) -> str:
    """A file's text.

    Raises
    ------
    UsageError
        When it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: byte {error.start}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error


def sources(paper: Path, is_made: re.Pattern[str]) -> tuple[list[Source], list[Taken]]:
    """The paper's own files, and the files made by this program that they take in: those whose text ``is_made``.

    Raises
    ------
    InputError
        When files that are taken in do not exist: all of them, with file and line.
    """
    own: list[Source] = []
    made: list[Taken] = []
    problems: list[Problem] = []
    seen = {paper.resolve()}
    waiting = [paper]
    while waiting:
        path = waiting.pop(0)
        text = _without_comments(read(path))
        own.append(Source(path=path, text=text))
        for match in _TAKEN.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            name = match[1].strip()
            if "\\" in name or "#" in name:  # a macro's argument, which only TeX knows
                continue
            found = _find(name, paper.parent, path.parent)
            if found is None:
                message = f"\\input{{{name}}}: there is no such file"
                problems.append(Problem(file=str(path), line=line, path="", message=message))
                continue
            if is_made.search(read(found)):
                made.append(Taken(file=path, line=line, path=found))
            elif found.resolve() not in seen:
                seen.add(found.resolve())
                waiting.append(found)
    if problems:
        raise InputError(problems)
    return own, made


def _find(name: str, *folders: Path) -> Path | None:
    for folder in folders:
        for path in (folder / f"{name}.tex", folder / name):
            if path.is_file():
                return path
    return None


def tabulars(source: Source) -> Iterator[Tabular]:
    """The tabulars of a file."""
    for match in _TABULAR.finditer(source.text):
        start = source.text.count("\n", 0, match.start()) + 1
        head = _head(match[2], groups=2 if match[1] in ("tabularx", "tabular*", "tabularx*") else 1)
        line = source.text.count("\n", 0, match.start(2) + head) + 1
        rows = []
        for row in re.split(r"(\\\\(?:\[[^]]*\])?)", match[2][head:]):
            if not row.startswith("\\\\"):
                cells, at = [], line
                for cell in re.split(r"(?<!\\)&", row):
                    lead = len(cell) - len(cell.lstrip())
                    cells.append(_cell(cell, at + cell[:lead].count("\n")))
                    at += cell.count("\n")
                rows.append(tuple(cells))
            line += row.count("\n")
        yield Tabular(file=source.path, line=start, rows=tuple(rows))


def _head(text: str, groups: int) -> int:
    """Where a tabular's arguments end: its place in brackets, and ``groups`` braces, which may hold others."""
    place = re.match(r"\s*\[[^]]*\]", text)
    at = place.end() if place else 0
    for _ in range(groups):
        depth = 0
        for position in range(at, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if not depth and text[position] == "}":
                at = position + 1
                break
    return at


def _cell(text: str, line: int) -> TypedCell:
    text = _RULES.sub(" ", text)
    span = re.search(r"\\multicolumn\s*\{(\d+)\}\s*\{[^{}]*\}", text)
    if span:
        text = text[: span.start()] + text[span.end() :]
    return TypedCell(text=plain(text), line=line, span=int(span[1]) if span else 1)


def plain(text: str) -> str:
    """A cell's words: markup goes, what it marks stays."""
    text = _DROPPED.sub(" ", text)
    for _ in range(4):  # \textbf{\underline{80.4}}
        text = _KEPT.sub(r" \1 ", text)
    text = re.sub(r"\\([&%_#$])", r"\1", text)
    text = re.sub(r"\\[a-zA-Z]+|[{}$~^]", " ", text)
    return " ".join(text.split())

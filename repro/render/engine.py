"""Templates: found in the project before the package, strict about names, escaped by default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from repro.errors import UsageError

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "⋆": r"$^{\star}$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "≈": r"$\approx$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
    "’": "'",
    "²": r"$^{2}$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "±": r"$\pm$",
    "°": r"$^{\circ}$",
}


# LaTeX is full of jinja2's default braces and of its comments {#.
_TEX_DELIMITERS: dict[str, Any] = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


def latex(text: object) -> str:
    """Escape text for LaTeX; signs that fonts lack become commands of plain LaTeX."""
    # Two apostrophes are a quotation mark in every font encoding; \\textquotedbl needs T1.
    escaped = "".join(_LATEX.get(character, character) for character in str(text).replace('"', "''"))
    return "".join(character if ord(character) < 0x250 else "?" for character in escaped)


def markdown(text: object) -> str:
    """Escape text for a cell of a GitHub table: markup characters lose their meaning, and nothing breaks the row."""
    flat = " ".join(str(text).split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        flat = flat.replace(character, entity)
    return re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", flat)


@cache
def _environment(folders: tuple[str, ...], suffix: str) -> jinja2.Environment:
    """One environment a suffix, kept: a site of hundreds of pages compiles each template once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=suffix == ".html",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(_TEX_DELIMITERS if suffix == ".tex" else {}),
    )
    environment.filters["latex"] = latex
    environment.filters["markdown"] = markdown
    return environment


def render(name: str, folders: Sequence[Path], **context: Any) -> str:
    """Render a template.

    Raises
    ------
    UsageError
        In one line with file and line, when a template is missing, broken, or asks for what does not exist.
    """
    environment = _environment(tuple(str(folder) for folder in folders), Path(name).suffix)
    try:
        return environment.get_template(name).render(**context)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{error.filename or name}:{error.lineno}: broken template: {error.message}") from error
    except jinja2.TemplateNotFound as error:
        raise UsageError(f"no template {error.name} in {', '.join(map(str, folders))}") from error
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        where = _place(error, folders)
        if where is None:
            raise
        message = " ".join(str(error).split())
        raise UsageError(f"{where}: broken template: {message or type(error).__name__}") from error


def _place(error: BaseException, folders: Sequence[Path]) -> str | None:
    """The template's file and line in a traceback that jinja2 has rewritten."""
    roots = [str(folder) for folder in folders]
    place, trace = None, error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if any(name.startswith(root) for root in roots):
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place

"""The line in a LaTeX table that says how it was made, so that it can be made again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repro.compare.cells import TableResult
from repro.errors import InputError, Problem
from repro.render.formats import FORMATS

STAMP = re.compile(r"^% repro: (\{.*\})$", re.M)


def current(text: str, where: str, compared: Callable[..., TableResult], folders: Sequence[Path]) -> str:
    """The same table from today's records: table, format, rows, metrics and tolerance as its stamp says.

    Raises
    ------
    InputError
        When the stamp is not one.
    """
    match = STAMP.search(text)
    try:
        if match is None:
            raise ValueError
        stamp: dict[str, Any] = json.loads(match[1])
        make = FORMATS[stamp["format"]].make
        chosen = {"rows": stamp.get("rows"), "metrics": stamp.get("metrics", []), "tolerance": stamp["tolerance"]}
        number = int(stamp["table"])
    except (ValueError, KeyError, TypeError, AttributeError):
        message = "its line '% repro: {...}' is damaged: make the table again with repro table"
        raise InputError([Problem(file=where, line=text.count("\n", 0, match.start()) + 1 if match else 1,
                                  path="", message=message)]) from None  # fmt: skip
    return make(compared(number, **chosen), folders)

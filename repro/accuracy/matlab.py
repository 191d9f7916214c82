"""The one MATLAB file that ImageNet needs: the table of synsets in its development kit's ``meta.mat``.

The kit numbers the 1,000 classes in an order of its own (``ILSVRC2012_ID``), and that order is written down nowhere
else in the kit. The file is a MAT-file of level 5 with one struct array; reading those takes a page, SciPy would be a
dependency of 100 MB for it. Format: MathWorks, "MAT-File Format", chapter "Level 5 MAT-File Format".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

_MATRIX, _COMPRESSED = 14, 15
_CHAR_CLASS, _STRUCT_CLASS = 4, 2
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


class MatlabError(ValueError):
    """Bytes that are no MAT-file of level 5, or one with parts that are not read here."""


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element in ``data``."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # small element: four bytes or fewer sit beside the tag
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        content = data[at + 8 : at + 8 + size]
        if len(content) < size:
            raise MatlabError("the file is cut short")
        yield kind, content
        at += 8 + size
        if kind != _COMPRESSED:  # every other element is padded to eight bytes
            at += -size % 8


def _numbers(kind: int, content: bytes, order: str) -> list[Any]:
    if kind not in _NUMBERS:
        raise MatlabError(f"data type {kind} is not read here")
    code = _NUMBERS[kind]
    return list(struct.unpack(f"{order}{len(content) // struct.calcsize(code)}{code}", content))


def _matrix(data: bytes, order: str) -> tuple[str, Any]:
    """Name and value of an array: text, a list of numbers, a list of dicts for a struct array, None for the rest."""
    parts = list(_elements(data, order))
    if not parts:
        return "", []  # MATLAB's empty placeholder
    if len(parts) < 3:
        raise MatlabError("an array without its header")
    flags = _numbers(*parts[0], order)[0]
    name = parts[2][1].decode("latin-1")
    body = parts[3:]
    if flags & 0xFF == _STRUCT_CLASS:
        width = _numbers(*body[0], order)[0]
        names = [body[1][1][i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(body[1][1]), width)]
        values = [_matrix(content, order)[1] for _, content in body[2:]]
        rows = [values[i : i + len(names)] for i in range(0, len(values), len(names))] if names else []
        return name, [dict(zip(names, row, strict=True)) for row in rows]
    if flags & 0xFF == _CHAR_CLASS:
        if not body:
            return name, ""
        kind, content = body[0]
        encoding = _TEXT.get(kind, "latin-1")
        wide = encoding in ("utf-16", "utf-32")
        return name, content.decode(encoding + {"<": "-le", ">": "-be"}[order] if wide else encoding)
    return name, _numbers(*body[0], order) if body and body[0][0] in _NUMBERS else None


def read_mat(data: bytes) -> dict[str, Any]:
    """Read the variables of a level 5 MAT-file.

    Returns
    -------
    dict
        Text as str, numeric arrays as flat lists in column order, struct arrays as lists of dicts, other kinds
        as None.

    Raises
    ------
    MatlabError
        When ``data`` is no such file.
    """
    orders = {b"IM": "<", b"MI": ">"}
    if len(data) < 128 or data[126:128] not in orders:
        raise MatlabError("not a MAT-file of level 5")
    order = orders[data[126:128]]
    variables: dict[str, Any] = {}
    try:
        for kind, content in _elements(data[128:], order):
            if kind == _COMPRESSED:
                kind, content = next(_elements(zlib.decompress(content), order))
            if kind == _MATRIX:
                name, value = _matrix(content, order)
                variables[name] = value
    except (struct.error, zlib.error, UnicodeDecodeError, StopIteration, IndexError, ValueError) as error:
        raise error if isinstance(error, MatlabError) else MatlabError(f"damaged: {error}") from error
    return variables


def read_synset_ids(data: bytes) -> dict[int, str]:
    """Map ``ILSVRC2012_ID`` to WordNet id for the leaf synsets of ``meta.mat``.

    Raises
    ------
    MatlabError
        When the file has no such table.
    """
    synsets = read_mat(data).get("synsets")
    if not isinstance(synsets, list) or not synsets or not isinstance(synsets[0], dict):
        raise MatlabError("has no struct array 'synsets'")
    try:
        # The inner nodes of the WordNet tree follow the classes in the same table: they have children.
        return {int(row["ILSVRC2012_ID"][0]): row["WNID"] for row in synsets if not int(row["num_children"][0])}
    except (KeyError, TypeError, IndexError) as error:
        raise MatlabError(f"'synsets' lacks {error}") from error

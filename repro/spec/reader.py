"""Typed reading of YAML that remembers where everything stood.

YAML's own types are not used: a scalar is the text between its quotes, so that ``1.10`` stays ``1.10`` and ``no`` stays
``no``. Every mistake of a file is gathered; :meth:`Reader.finish` raises them together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from repro.errors import InputError, Problem

try:  # libyaml is part of PyYAML's wheels; the pure loader reads the same language ten times slower
    from yaml import CSafeLoader as _Loader
except ImportError:  # pragma: no cover - depends on how PyYAML was built
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

T = TypeVar("T")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # no other script's digits, and nothing that int() refuses as too long
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_DEEPEST = 50  # levels of lists and mappings in a builder's arguments
_TRUTH = {"true": True, "yes": True, "false": False, "no": False}


def suggestion(word: str, known: Collection[str]) -> str:
    """Return ``; did you mean X?`` for the nearest known words, or nothing."""
    folded = {name.casefold(): name for name in known}
    near = [folded[match] for match in difflib.get_close_matches(word.casefold(), list(folded), n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


@dataclass
class Reader:
    """The problems of one file, and the getters that find them."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    _without_text: set[str] = field(default_factory=set)

    def problem(self, node: Node, message: str) -> None:
        """Keep a mistake; reading goes on. Where there is no text to read, nothing more is said of the text."""
        if node.path not in self._without_text:
            found = Problem(file=self.file, line=node.line, path=_one_line(node.path), message=_one_line(message))
            self.problems.append(found)

    def no_text(self, node: Node, message: str) -> None:
        """Keep the mistake that ``node`` has no text, the only one to report for it."""
        self.problem(node, message)
        self._without_text.add(node.path)

    def finish(self) -> None:
        """Raise all mistakes of the file at once, if there are any."""
        if self.problems:
            raise InputError(self.problems)

    @classmethod
    def open(cls, path: Path) -> tuple[Reader, Node]:
        """Parse one YAML document.

        Raises
        ------
        InputError
            When the file cannot be read, is no YAML, is empty or holds several documents.
        """
        line, data = 0, b""
        try:
            data = path.read_bytes()
            root = yaml.compose(data.decode("utf-8"), Loader=_Loader)
        except OSError as error:
            message = f"cannot be read: {error.strerror or error}"
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            message = f"is not UTF-8 text: byte {error.start}: {error.reason}"
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            message = f"is not YAML: {' '.join(filter(None, [error.context, error.problem]))}"
        except yaml.reader.ReaderError as error:
            line = data.count(b"\n", 0, error.position) + 1
            message = f"is not YAML: {error.reason}"
        except (yaml.YAMLError, RecursionError) as error:
            message = f"is not YAML: {' '.join(str(error).split())}"
        else:
            if root is not None:
                reader = cls(str(path))
                return reader, Node(reader, root, "")
            message = "is empty"
        raise InputError([Problem(file=str(path), line=line, path="", message=message)])


@dataclass(frozen=True)
class Node:
    """One place in a YAML file."""

    reader: Reader
    raw: yaml.Node
    path: str
    key: yaml.Node | None = None  # what it stands behind in a mapping

    @property
    def line(self) -> int:
        """Line in the file, counted from one."""
        return int(self.raw.start_mark.line) + 1

    @property
    def is_mapping(self) -> bool:
        """Whether keys can be asked of this node."""
        return isinstance(self.raw, yaml.MappingNode)

    def problem(self, message: str) -> None:
        """Keep a mistake at this place."""
        self.reader.problem(self, message)

    def entries(self) -> dict[str, Node]:
        """The values of a mapping by key; a repeated key is a mistake and its first value is kept."""
        if not isinstance(self.raw, yaml.MappingNode):
            self.problem(f"must be a mapping, not {_kind(self.raw)}")
            return {}
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in self.raw.value:
            if not isinstance(key, yaml.ScalarNode):
                Node(self.reader, key, self.path).problem("a key must be plain text")
                continue
            node = Node(self.reader, value, f"{self.path}.{key.value}" if self.path else key.value, key)
            if key.value in found:
                where = Node(self.reader, key, node.path)
                where.problem(f"duplicate key {key.value!r}, first given on line {lines[key.value]}")
                continue
            lines[key.value] = key.start_mark.line + 1
            found[key.value] = node
        return found

    def keys(self, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, Node]:
        """The entries of a mapping with a fixed set of keys; unknown and missing ones are mistakes."""
        entries = self.entries()
        if not self.is_mapping:
            return {}
        known = [*required, *optional]
        for key in [key for key in entries if key not in known]:
            node = entries.pop(key)
            Node(self.reader, node.key or node.raw, node.path).problem(f"unknown key {key!r}{suggestion(key, known)}")
        for key in required:
            if key not in entries:
                self.problem(f"missing key {key!r}")
        return entries

    def items(self) -> Iterator[Node]:
        """The places of a sequence."""
        if not isinstance(self.raw, yaml.SequenceNode):
            self.problem(f"must be a list, not {_kind(self.raw)}")
            return
        for index, value in enumerate(self.raw.value):
            yield Node(self.reader, value, f"{self.path}[{index}]")

    def text(self) -> str:
        """The text of a scalar, exactly as written; empty text is a mistake."""
        if not isinstance(self.raw, yaml.ScalarNode):
            self.reader.no_text(self, f"must be text, not {_kind(self.raw)}")
            return "?"
        if not self.raw.value.strip() or (not self.raw.style and self.raw.value in ("~", "null")):
            self.reader.no_text(self, "must not be empty")
        return str(self.raw.value)

    def integer(self, minimum: int = 0) -> int:
        """A whole number of at least ``minimum``."""
        text = self.text()
        if not _INTEGER.fullmatch(text) or int(text) < minimum:
            self.problem(f"must be a whole number of at least {minimum}, not {text!r}")
            return minimum
        return int(text)

    def number(self) -> str:
        """A decimal number, kept as the text it was written in."""
        text = self.text()
        if not _NUMBER.fullmatch(text):
            self.problem(f"must be a number, not {text!r}")
            return "0"
        return text

    def truth(self) -> bool:
        """A yes or no."""
        text = self.text()
        if text.casefold() not in _TRUTH:
            self.problem(f"must be true or false, not {text!r}")
        return _TRUTH.get(text.casefold(), False)

    def choice(self, known: Collection[str]) -> str:
        """One of a fixed set of words."""
        text = self.text()
        if text not in known:
            self.problem(f"unknown value {text!r}{suggestion(text, known)}; known: {', '.join(known)}")
        return text

    def plain(self, _above: tuple[int, ...] = ()) -> object:
        """Arguments for a builder: mappings, lists, numbers, truth values and text, as a plain scalar reads."""
        if id(self.raw) in _above or len(_above) > _DEEPEST:  # an anchor can be used inside itself
            self.problem("is nested too deeply")
            return None
        above = (*_above, id(self.raw))
        if isinstance(self.raw, yaml.MappingNode):
            return {key: value.plain(above) for key, value in self.entries().items()}
        if isinstance(self.raw, yaml.SequenceNode):
            return [item.plain(above) for item in self.items()]
        text = str(self.raw.value)
        if isinstance(self.raw, yaml.ScalarNode) and self.raw.style in ("'", '"'):
            return text
        if text.casefold() in ("null", "~", ""):
            return None
        if text.casefold() in ("true", "false"):
            return text.casefold() == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) else text


def _one_line(text: str) -> str:
    """Keys and values may hold line ends and control characters; a message must not."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "text"

"""What a model said about each image, kept while an evaluation runs and found again by the next one.

A file holds the results of a few images as compressed JSON. It is written to a temporary name and renamed, so that a
process that is killed leaves no half of one: a file that does not read was damaged by something else, and is told.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.accuracy.errors import EvaluationError
from repro.files import write_atomically

FORMAT = 1


class DamagedResultsError(EvaluationError):
    """A file of results that is not whole, or not what its name says."""


@dataclass(frozen=True)
class ResultStore:
    """The results of one model on one data set under one protocol.

    Parameters
    ----------
    folder
        Of this key alone; see :meth:`of`.
    """

    folder: Path
    key: str

    @classmethod
    def of(cls, root: Path, name: str, key: Mapping[str, Any]) -> ResultStore:
        """The store of a model: its folder's name tells the model, and a digest of what the results depend on."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=list).encode()).hexdigest()
        return cls(root / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{digest[:20]}", digest)

    def load(self, images: Sequence[Any]) -> dict[int, Any]:
        """Results by the image's place in the data set.

        Raises
        ------
        DamagedResultsError
            For a file that is not whole, or not of this model, data set and protocol.
        """
        found: dict[int, Any] = {}
        for path in sorted(self.folder.glob("*.json.gz")) if self.folder.is_dir() else ():
            for place, result in self._read(path):
                if not 0 <= place < len(images) or result.get("key") != images[place].key:
                    raise self._damaged(path, "it is of other images")
                found[place] = result
        return found

    def save(self, results: Mapping[int, Any]) -> None:
        """Keep the results of a few images."""
        if results:
            content = {"format": FORMAT, "key": self.key, "results": sorted(results.items())}
            data = gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 6, mtime=0)
            write_atomically(self.folder / f"{min(results):06d}-{max(results):06d}.json.gz", data)

    def _read(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            if content["format"] != FORMAT or content["key"] != self.key:
                raise self._damaged(path, "it is of another evaluation")
            for place, result in content["results"]:
                if not isinstance(place, int) or not isinstance(result, dict):
                    raise ValueError("it holds no results")
                yield place, result
        except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
            raise self._damaged(path, " ".join(str(error).split()) or type(error).__name__) from error

    def _damaged(self, path: Path, why: str) -> DamagedResultsError:
        return DamagedResultsError(f"{path}: a damaged result file: {why}; delete it, and its images are done again")

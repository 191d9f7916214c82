"""What to convert, where the package lies, and whether it is there already.

Light: a cached export looks here alone, so nothing imports torch or coremltools. A package has a name of its own for
every combination of code, weights, size and options, and a JSON file beside it that says what it is and what checking
it found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.files import write_atomically
from repro.results.record import canonical, digest
from repro.results.sources import source_of, version
from repro.spec.tables import InputSize, Variant

SCHEMA = 1
#: Raise this when converting or preparing a module changes its results.
METHOD = "export 2"
#: What a worker calls with a job's payload.
TASK = "repro.coreml.exporting:export"
#: ImageNet's usual normalisation, for an image input of a variant that no manifest lists.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def default_folder() -> Path:
    """Where packages are kept: ``REPRO_PACKAGES``, else the platform's cache folder."""
    if given := os.environ.get("REPRO_PACKAGES"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("repro", appauthor=False) / "packages"


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """The weights that go into a package: a file, or seeded ones where ``path`` is None."""

    path: str | None = None
    sha256: str | None = None
    checkpoint: str | None = None
    """Its id in the manifest; None for a file of the user's own."""
    wrapper: str | None = None
    seed: int = 0

    @property
    def identity(self) -> list[str]:
        """What tells weights apart, wherever the file lies."""
        return ["seed", str(self.seed)] if self.path is None else ["file", self.sha256 or "", self.wrapper or ""]

    @property
    def said(self) -> str:
        """As a person reads it, and as the package's metadata says it."""
        if self.path is None:
            return f"seeded {self.seed}"
        return f"{self.checkpoint or Path(self.path).name} {(self.sha256 or '')[:12]}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One package to be made."""

    variant: Variant
    """The table's."""
    build: Variant
    """What to build: another model than the table's where its checkpoint needs one."""
    input_size: InputSize
    weights: WeightSource
    precision: str = "float16"
    target: str = "iOS15"
    input_kind: str = "tensor"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the package's content."""
        build = self.build
        return {
            "builder": build.builder,
            "model": build.model,
            "arguments": dict(build.arguments),
            "source": source_of(build.builder, build.model),
            "variant": self.variant.id,
            "input_size": list(self.input_size),
            "weights": self.weights.identity,
            "precision": self.precision,
            "target": self.target,
            "input": self.input_kind,
            "normalisation": [list(self.mean), list(self.std)],
            "versions": {name: version(name) for name in ("torch", "timm", "torchvision", "coremltools", "numpy")},
            "method": METHOD,
        }

    @property
    def key(self) -> str:
        """Digest of the identity."""
        return digest(self.identity)

    @property
    def name(self) -> str:
        """The package's name without its ending."""
        height, width = self.input_size
        size = str(height) if height == width else f"{height}x{width}"
        image = "_image" if self.input_kind == "image" else ""
        return f"{self.variant.id}_{size}_{self.precision}_{self.target}{image}-{self.key[:8]}"


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """A request and what is left to do for it, as a worker takes it."""

    request: Request
    folder: Path
    check: bool
    convert: bool

    @property
    def name(self) -> str:
        """What progress shows."""
        return self.request.name.rpartition("-")[0]

    @property
    def path(self) -> Path:
        """Where the package lies."""
        return self.folder / f"{self.request.name}.mlpackage"

    def payload(self) -> dict[str, Any]:
        """The job as plain data."""
        request = self.request
        plain: dict[str, Any] = json.loads(
            canonical(
                {
                    "variant": asdict(request.variant),
                    "build": asdict(request.build),
                    "input_size": list(request.input_size),
                    "weights": asdict(request.weights),
                    "weights_said": request.weights.said,
                    "options": {
                        "precision": request.precision,
                        "target": request.target,
                        "input_kind": request.input_kind,
                        "mean": list(request.mean),
                        "std": list(request.std),
                    },
                    "path": str(self.path.resolve()),
                    "check": self.check,
                    "convert": self.convert,
                }
            )
        )
        return plain


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A package and what is known about it: the JSON file beside it."""

    path: Path
    variant: str
    input_size: InputSize
    weights: str
    content_hash: str
    """:meth:`repro.coreml.package.Package.content_hash`, which takes seconds to compute."""
    seconds: float
    identity: Mapping[str, Any]
    check: Mapping[str, Any] | None
    cached: bool = False


def find(request: Request, folder: Path) -> Exported | None:
    """The package of a request, if it is there and nobody has touched it since it was made."""
    path = folder / f"{request.name}.mlpackage"
    try:
        data = json.loads(_beside(path).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or data["key"] != request.key or data["files"] != _files(path):
            return None
        return _exported(path, data, cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(job: ExportJob, outcome: Mapping[str, Any], known: Exported | None) -> Exported:
    """Write the JSON file beside a package that a worker made or checked."""
    data = {
        "schema": SCHEMA,
        "key": job.request.key,
        "identity": job.request.identity,
        "weights": job.request.weights.said,
        "content_hash": outcome["content_hash"],
        "seconds": outcome["seconds"] if job.convert or known is None else known.seconds,
        "files": _files(job.path),
        "check": outcome["check"] if job.check else (known.check if known is not None else None),
    }
    write_atomically(_beside(job.path), json.dumps(data, indent=1) + "\n")
    return _exported(job.path, data, cached=False)


def _exported(path: Path, data: Mapping[str, Any], *, cached: bool) -> Exported:
    height, width = data["identity"]["input_size"]
    return Exported(
        path=path,
        variant=data["identity"]["variant"],
        input_size=(height, width),
        weights=data["weights"],
        content_hash=data["content_hash"],
        seconds=data["seconds"],
        identity=data["identity"],
        check=data["check"],
        cached=cached,
    )


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _files(path: Path) -> list[list[Any]]:
    """Name, size and time of every file of a package: enough to see that it is still what was written."""
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return [[file.relative_to(path).as_posix(), (s := file.stat()).st_size, s.st_mtime_ns] for file in found]

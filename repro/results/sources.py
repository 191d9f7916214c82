"""What defines a variant beside its name: the release, or the file, that its code comes from.

Read from the installed packages' metadata and from files, so that a cached table learns it without importing torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path


@cache
def version(package: str) -> str:
    """The installed release of ``package``, or ``absent``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


_REGISTERED = re.compile(r'^(?:@register_model\ndef (\w+)\(|    "(\w+)(?:\.\w+)?": )', re.MULTILINE)


@cache
def ported() -> dict[str, Path]:
    """The file of each model that this package registers with timm: by function, or by key of a table of variants."""
    found: dict[str, Path] = {}
    for path in sorted((Path(__file__).parent.parent / "models").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "register_model(" in text or "@register_model" in text:
            found |= {function or key: path for function, key in _REGISTERED.findall(text)}
    return found


def source_of(builder: str, model: str) -> str:
    """Name the code that builds a variant: a library's release, or a file's digest.

    Examples: ``timm 1.0.31``, ``torchvision 0.22.0``, ``repro sbcformer.py 1f2e3d4c5b6a``.
    """
    if builder == "timm" and (path := ported().get(model.partition(".")[0])) is not None:
        return f"repro {path.name} {_digest(path)}, timm {version('timm')}"
    if builder in ("timm", "torchvision"):
        return f"{builder} {version(builder)}"
    module = model.partition(":")[0]
    path = _file_of(module)
    return f"python {module}" if path is None else f"python {module} {_digest(path)}"


def _file_of(module: str) -> Path | None:
    """A module's file, found without importing the packages that it lies in, as find_spec on its full name would."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if rest:
        folders = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
        files = [file for folder in folders for file in (folder.with_suffix(".py"), folder / "__init__.py")]
    else:
        files = [Path(spec.origin)] if spec.origin is not None else []
    return next((file for file in files if file.is_file()), None)

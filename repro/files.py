"""Files and folders that are whole or absent: written to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from repro.errors import UsageError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader, or a crash, never sees half of it.

    Raises
    ------
    UsageError
        When the folder cannot be made or written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def new_folder_beside(folder: Path) -> Path:
    """An empty temporary folder on the same file system as ``folder``, to be filled and then put in its place.

    Raises
    ------
    UsageError
        When it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{os.getpid()}.", suffix=".new"))
        made.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return made


def put_in_place(new: Path, folder: Path) -> None:
    """Let ``new`` take the place of ``folder`` in one step, then remove what was there.

    Whoever looks, or whenever the process dies, ``folder`` is the old one or the new one, whole. Where the file system
    cannot exchange two names in one step, the old folder is set aside first, and ``recover`` brings it back.

    Raises
    ------
    UsageError
        When the names cannot be changed.
    """
    try:
        if not folder.exists():
            new.rename(folder)
            return
        if _exchange(new, folder):
            shutil.rmtree(new, ignore_errors=True)
            return
        aside = _aside(folder)
        folder.rename(aside)
        new.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be replaced: {error.strerror or error}") from error


def recover(folder: Path) -> None:
    """Bring back what an interrupted ``put_in_place`` had set aside, and remove what a killed run left half made."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    for left in folder.parent.glob(f".{folder.name}.*.new"):
        if not _alive(left.name.removeprefix(f".{folder.name}.").partition(".")[0]):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: str) -> bool:
    """Whether a process id is in use: another run's folder is not ours to remove."""
    if not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, where the system can: Linux's renameat2 and macOS's renamex_np."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    here, exchange = -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP share a value
    try:
        if sys.platform == "darwin":
            return int(library.renamex_np(*names, exchange)) == 0
        return int(library.renameat2(here, names[0], here, names[1], exchange)) == 0
    except AttributeError:  # a C library without the call
        return False

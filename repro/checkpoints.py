"""A folder of downloaded weight files: fetched with resume and retry, and let in only when their hash is right.

pooch keeps the discipline (a temporary file beside the place, retries, then one rename); what it lacks, going on with
a broken download, is in :class:`_Resuming`. Files of the hub are fetched by the hub's own client.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.errors import ReproError, UsageError
from repro.files import write_atomically
from repro.spec.manifest import LOCK, Checkpoint, Manifest, pins_text, read_pins

_CHUNK = 2**20
_PIECE = 2**15  # of a download: what a broken connection loses
TIMEOUT = 30.0
RETRIES = 3

# Told of each piece: the checkpoint's id, bytes so far, bytes in all where the server says.
Tell = Callable[[str, int, int | None], None]


class DownloadError(ReproError):
    """A file that could not be had, or that is not what the manifest says."""


def default_folder() -> Path:
    """Where checkpoints are kept: ``REPRO_CHECKPOINTS``, else the platform's cache folder."""
    if given := os.environ.get("REPRO_CHECKPOINTS"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("repro", appauthor=False) / "checkpoints"


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(checkpoint: Checkpoint, path: Path) -> str:
    """Return the SHA-256 of a file after comparing it with what the manifest states.

    Raises
    ------
    DownloadError
        When size or hash differ, or the file cannot be read.
    """
    try:
        size, found = path.stat().st_size, hash_file(path)
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    stated, name = checkpoint.sha256, f"{checkpoint.id}: {path.name}"
    by = "pinned" if checkpoint.pinned else "stated in the manifest"
    if checkpoint.size is not None and checkpoint.size != size:
        raise DownloadError(f"{name} has {size:,} bytes, {by}: {checkpoint.size:,}; the file was not kept")
    if stated is not None and not found.startswith(stated):
        raise DownloadError(f"{name} has SHA-256 {found[: max(12, len(stated))]}, {by}: {stated}; it was not kept")
    return found


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to fetch. ``seconds`` without a byte end an attempt."""

    offline: bool = False
    source: Path | None = None  # a local folder to take files from
    seconds: float = TIMEOUT
    retries: int = RETRIES
    jobs: int = 4
    refresh: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder of checkpoints, each under its id with its source's ending."""

    path: Path
    _hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, given: Path | None) -> Folder:
        """The given folder, else the default one."""
        return cls(given if given is not None else default_folder())

    def place(self, checkpoint: Checkpoint) -> Path:
        """Where the file of a checkpoint is, or will be."""
        return self.path / checkpoint.file_name

    def hash_of(self, checkpoint: Checkpoint) -> str:
        """SHA-256 of a file that is here and was checked."""
        if checkpoint.id not in self._hashes:
            self._hashes[checkpoint.id] = check_file(checkpoint, self.place(checkpoint))
        return self._hashes[checkpoint.id]

    def ready(self, wanted: Sequence[Checkpoint], *, offline: bool = False) -> tuple[dict[str, Path], dict[str, str]]:
        """The files of checkpoints, fetched where they are not here, and what was wrong with the others."""
        files, problems = {}, {}
        for checkpoint, outcome in self.fetch(wanted, Options(offline=offline)):
            if isinstance(outcome, ReproError):
                problems[checkpoint.id] = str(outcome)
            else:
                files[checkpoint.id] = outcome
        return files, problems

    def fetch(
        self, wanted: Sequence[Checkpoint], options: Options, tell: Tell | None = None
    ) -> Iterator[tuple[Checkpoint, Path | ReproError]]:
        """Fetch several checkpoints at a time and yield each when it is here and right, or why it is not.

        A file that is here already is checked and kept.
        """
        if not wanted:
            return
        pool = ThreadPoolExecutor(max_workers=max(1, options.jobs))
        try:
            running: dict[Future[Path], Checkpoint] = {
                pool.submit(self._get, checkpoint, options, tell or (lambda name, done, total: None)): checkpoint
                for checkpoint in wanted
            }
            for future in as_completed(running):
                try:
                    yield running[future], future.result()
                except ReproError as error:
                    yield running[future], error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _get(self, checkpoint: Checkpoint, options: Options, tell: Tell) -> Path:
        if checkpoint.source is None:
            raise DownloadError(f"{checkpoint.id}: no checkpoint was released: {checkpoint.reason}")
        path = self.place(checkpoint)
        if path.exists() and not options.refresh:
            self.hash_of(checkpoint)
            return path
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(f"{self.path}: cannot be made: {error.strerror or error}") from error
        if options.source is not None:
            return self._copy(checkpoint, options.source)
        if options.offline or _offline():
            raise DownloadError(f"{checkpoint.id}: not in {self.path}, and offline; from {checkpoint.source.place}")
        if checkpoint.source.by_hand is not None:
            raise DownloadError(
                f"{checkpoint.id}: no program can fetch {checkpoint.source.by_hand}: download it by hand and put it at "
                f"{path}"
            )
        if checkpoint.source.hub is not None:
            return self._hub(checkpoint)
        return self._addresses(checkpoint, options, tell)

    def _let_in(self, checkpoint: Checkpoint, found: Path) -> Path:
        """Check a file in this folder and give it its name."""
        try:
            self._hashes[checkpoint.id] = check_file(checkpoint, found)
        except DownloadError:
            found.unlink(missing_ok=True)
            raise
        return found.replace(self.place(checkpoint))

    def _copy(self, checkpoint: Checkpoint, folder: Path) -> Path:
        source = checkpoint.source
        assert source is not None
        names = [checkpoint.file_name, (source.url or source.file).partition("?")[0].rpartition("/")[2]]
        if source.hub:
            names += [f"{source.hub.rpartition('/')[2]}/{source.file}", f"{source.hub}/{source.file}"]
        for name in names:
            if (folder / name).is_file():
                # beside its place, so that the rename is one step; a reader never sees half of it
                found = self.path / f".{checkpoint.file_name}.{os.getpid()}.copy"
                try:
                    shutil.copyfile(folder / name, found)
                except OSError as error:
                    found.unlink(missing_ok=True)
                    raise DownloadError(f"{folder / name}: cannot be copied: {error.strerror or error}") from error
                return self._let_in(checkpoint, found)
        raise DownloadError(f"{checkpoint.id}: {folder} has no {' or '.join(dict.fromkeys(names))}")

    def _hub(self, checkpoint: Checkpoint) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars
        from huggingface_hub.utils.logging import set_verbosity_error

        source = checkpoint.source
        assert source is not None
        assert source.hub is not None
        disable_progress_bars()
        set_verbosity_error()  # its retries are no news; that they were in vain is
        incoming = self.path / ".incoming" / checkpoint.id
        try:
            found = hf_hub_download(
                source.hub,
                source.file,
                revision=source.revision,
                local_dir=incoming,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        except Exception as error:  # the client's own errors, its transport's, and the disk's
            if not list(incoming.rglob("*.incomplete")):  # which the client goes on with
                self._discard(incoming)
            raise DownloadError(f"{checkpoint.id}: {source.place}: {_one_line(error)}") from error
        try:
            return self._let_in(checkpoint, Path(found))
        finally:
            self._discard(incoming)

    @staticmethod
    def _discard(incoming: Path) -> None:
        shutil.rmtree(incoming, ignore_errors=True)
        with contextlib.suppress(OSError):  # another download's may be there
            incoming.parent.rmdir()

    def _addresses(self, checkpoint: Checkpoint, options: Options, tell: Tell) -> Path:
        source = checkpoint.source
        assert source is not None
        assert source.url is not None
        problems = []
        for address in (source.url, *source.mirrors):
            try:
                return self._pooch(checkpoint, address, options, tell)
            except DownloadError as error:
                problems.append(str(error))
        raise DownloadError("; ".join(problems))

    def _pooch(self, checkpoint: Checkpoint, address: str, options: Options, tell: Tell) -> Path:
        import logging

        import pooch
        import requests

        pooch.get_logger().setLevel(logging.CRITICAL)  # its retries are ours to tell
        name = checkpoint.file_name
        keeper = pooch.create(
            path=self.path,
            base_url="",
            registry={name: None},  # the hash is compared before pooch moves the file: prefixes are published too
            urls={name: address},
            retry_if_failed=options.retries,
        )
        place = self.place(checkpoint)
        if options.refresh:
            place.unlink(missing_ok=True)
        try:
            keeper.fetch(name, downloader=_Resuming(checkpoint, place, options.seconds, tell))
        except (requests.RequestException, OSError) as error:
            raise DownloadError(f"{checkpoint.id}: {address}: {_one_line(error)}") from error
        self._hashes.pop(checkpoint.id, None)
        self.hash_of(checkpoint)
        return place


@dataclass(frozen=True)
class _Resuming:
    """Downloads for pooch: into a part file that outlives a broken attempt, checked before it is handed over."""

    checkpoint: Checkpoint
    place: Path
    seconds: float
    tell: Tell

    def __call__(self, url: str, output_file: Any, keeper: Any, check_only: bool = False) -> None:
        import requests

        part = self.place.with_name(f".{self.place.name}.part")
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, headers=headers, stream=True, timeout=(self.seconds, self.seconds)) as response:
            if have and response.status_code == 416:  # there is nothing after what is here: it is whole, or another
                part.rename(output_file)
                self._check(output_file)
                return
            if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
                said = f"{response.status_code} {response.reason}"
                raise DownloadError(f"{self.checkpoint.id}: {url}: the server says {said}")
            response.raise_for_status()
            resumed = response.status_code == 206
            length = response.headers.get("Content-Length")
            done = have if resumed else 0
            total = done + int(length) if length and length.isdigit() else None
            with part.open("ab" if resumed else "wb") as stream:
                for chunk in response.iter_content(_PIECE):
                    stream.write(chunk)
                    done += len(chunk)
                    self.tell(self.checkpoint.id, done, total)
        if total is not None and done != total:
            raise requests.ConnectionError(f"the server sent {done:,} of {total:,} bytes")
        part.replace(output_file)
        self._check(Path(output_file))

    def _check(self, found: str | Path) -> None:
        try:
            check_file(self.checkpoint, Path(found))
        except DownloadError as error:
            # pooch's temporary name says nothing to the user
            raise DownloadError(str(error).replace(Path(found).name, self.place.name)) from None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def pin(manifest: Manifest, found: Mapping[str, tuple[str, int]]) -> list[str]:
    """Write hashes and sizes into the project's lock file, and name what was new.

    Raises
    ------
    UsageError
        When a file differs from its pin, or the lock file cannot be written.
    """
    pins = read_pins(manifest.folder)
    for name, (sha256, _) in found.items():
        if name in pins and pins[name][0] != sha256:
            raise UsageError(f"{name}: has SHA-256 {sha256[:12]}, {manifest.folder / LOCK} pins {pins[name][0][:12]}")
    new = [name for name in found if name not in pins]
    if new:
        write_atomically(manifest.folder / LOCK, pins_text({**pins, **found}))
    return new

"""Fetching: a server that is well, broken, wrong or silent; and what is left behind."""

from __future__ import annotations

import hashlib
import os
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
import torch

from repro.spec.manifest import load_manifest

ENTRY = """\
schema: 1
family: Line
checkpoints:
- id: line_8.ours
  variant: line_8
  source: {{url: "{url}"}}
  {hash}preprocessing: {{input_size: 16, crop_pct: 1, interpolation: bilinear}}
  paper_row: same
- id: line_8.drive
  variant: line_8
  source: {{by_hand: "https://drive.google.com/file/d/1/view"}}
  preprocessing: {{input_size: 16, crop_pct: 1, interpolation: bilinear}}
  paper_row: different_recipe
  reason: another schedule
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        data, mode = self.server.data, self.path.strip("/").partition(".")[0]
        self.server.requests.append(self.headers.get("Range"))
        if mode == "hang":
            self.server.release.wait(20)
            return
        if mode == "missing":
            self.send_error(404)
            return
        start = 0
        if (ranged := self.headers.get("Range")) and mode != "noresume":
            start = int(ranged.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        whole = mode in ("good", "noresume") or (mode == "once" and len(self.server.requests) > 1)
        self.wfile.write(data[start:] if whole else data[start : start + (len(data) - start) // 2])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as made:
        made.data = torch.randn(40_000).numpy().tobytes()
        made.requests = []
        made.release = threading.Event()
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.release.set()
        made.shutdown()


@pytest.fixture
def fetch(repro, second_paper, server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = tmp_path / "checkpoints"

    def run(mode, *options, sha256=None, names=("line_8.ours",)):
        manifests = second_paper / "checkpoints_manifest"
        manifests.mkdir(exist_ok=True)
        stated = f'sha256: "{sha256}"\n  ' if sha256 else ""
        url = f"http://127.0.0.1:{server.server_address[1]}/{mode}.pth"
        (manifests / "line.yaml").write_text(ENTRY.format(url=url, hash=stated))
        return repro("checkpoints", "fetch", *names, "--project", second_paper, "--checkpoints", folder, *options)

    run.folder, run.place, run.project = folder, folder / "line_8.ours.pth", second_paper
    run.sha256 = hashlib.sha256(server.data).hexdigest()
    return run


def refused(result):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("repro: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("length", [8, 64])
def test_a_right_file_is_let_in(fetch, server, length):
    result = fetch("good", sha256=fetch.sha256[:length])
    assert result.exit_code == 0, result.output
    assert fetch.place.read_bytes() == server.data
    assert left(fetch.folder) == ["line_8.ours.pth"]
    assert fetch("good", sha256=fetch.sha256[:length]).exit_code == 0
    assert len(server.requests) == 1  # what is here is checked, not fetched again


def test_another_hash_keeps_the_file_out(fetch):
    message = refused(fetch("good", sha256="0" * 64))
    assert "line_8.ours.pth has SHA-256" in message
    assert left(fetch.folder) == []


def test_a_server_that_cuts_every_answer_short_ends_in_one_line(fetch):
    message = refused(fetch("short", "--retries", "1", "--timeout", "5"))
    assert "line_8.ours" in message
    assert not fetch.place.exists()


def test_a_broken_download_is_gone_on_with(fetch, server):
    assert fetch("once", "--timeout", "5", sha256=fetch.sha256).exit_code == 0
    assert fetch.place.read_bytes() == server.data
    first, second = server.requests
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= len(server.data) // 2


def test_a_server_that_cannot_resume_starts_anew(fetch, server):
    fetch.folder.mkdir()
    (fetch.folder / ".line_8.ours.pth.part").write_bytes(b"something else")
    assert fetch("noresume", sha256=fetch.sha256).exit_code == 0
    assert fetch.place.read_bytes() == server.data


def test_a_server_that_hangs_is_given_up(fetch):
    start = time.monotonic()
    message = refused(fetch("hang", "--retries", "0", "--timeout", "1"))
    assert "timed out" in message
    assert time.monotonic() - start < 10
    assert left(fetch.folder) == []


def test_a_missing_file_is_not_asked_for_again(fetch, server):
    assert "404" in refused(fetch("missing", "--retries", "3"))
    assert len(server.requests) == 1


def test_what_no_program_can_fetch_says_where_to_put_it(fetch):
    message = refused(fetch("good", names=("line_8.drive",)))
    assert "drive.google.com" in message
    assert str(fetch.folder / "line_8.drive.pth") in message


def test_offline_asks_nobody(fetch, server, monkeypatch):
    assert "offline" in refused(fetch("good", "--offline"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline" in refused(fetch("good"))
    assert server.requests == []


def test_from_a_folder_and_a_pin_from_then_on(fetch, server, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "good.pth").write_bytes(server.data)
    result = fetch("good", "--from", mirror)
    assert result.exit_code == 0, result.output
    assert "pinned" in result.stderr
    [checkpoint] = [c for c in load_manifest(fetch.project / "checkpoints_manifest").checkpoints if c.pinned]
    assert checkpoint.sha256 == fetch.sha256
    assert server.requests == []
    server.data = server.data[:-1] + bytes([server.data[-1] ^ 1])
    assert "pinned" in refused(fetch("good", "--refresh"))
    assert left(fetch.folder) == []


def test_check_names_a_damaged_file(fetch, repro):
    assert fetch("good", sha256=fetch.sha256).exit_code == 0
    fetch.place.write_bytes(b"damaged")
    result = repro("checkpoints", "check", "--project", fetch.project, "--checkpoints", fetch.folder)
    assert result.exit_code == 1
    assert "line_8.ours" in result.stderr


def test_list_tells_what_is_here(fetch, repro):
    fetch("good", sha256=fetch.sha256[:8])
    result = repro("checkpoints", "list", "--project", fetch.project, "--checkpoints", fetch.folder)
    assert "2 checkpoints: 1 same, 1 different recipe, 0 none released" in result.stdout
    assert "(by hand)" in result.stdout


class Hub(BaseHTTPRequestHandler):
    """What the hub answers about one file: its commit, its hash as an entity tag, its bytes."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        data = self.server.data
        if self.path != "/timm/line_8/resolve/main/model.safetensors":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.server.requests.append(self.path)
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("file", "right", "message"),
    [
        ("model.safetensors", True, None),
        ("model.safetensors", False, "SHA-256"),
        ("other.safetensors", True, "other.safetensors"),
    ],
)
def test_a_file_of_the_hub_comes_through_its_own_client(second_paper, server, tmp_path, file, right, message):
    server.RequestHandlerClass = Hub
    sha256 = hashlib.sha256(server.data).hexdigest() if right else "0" * 64
    manifests = second_paper / "checkpoints_manifest"
    manifests.mkdir()
    text = ENTRY.format(url="http://127.0.0.1:1/x.pth", hash=f'sha256: "{sha256}"\n  ')
    text = text.replace('{url: "http://127.0.0.1:1/x.pth"}', f"{{hub: timm/line_8, file: {file}}}")
    (manifests / "line.yaml").write_text(text)
    folder = tmp_path / "checkpoints"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
    command = [sys.executable, "-m", "repro", "checkpoints", "fetch", "line_8.ours"]
    command += ["--project", str(second_paper), "--checkpoints", str(folder)]
    # a process of its own: the client reads its settings when it is imported
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    if message is None:
        assert done.returncode == 0, done.stderr
        assert [path.read_bytes() for path in folder.rglob("*.safetensors")] == [server.data]
        assert len(server.requests) == 1
    else:
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert left(folder) == []

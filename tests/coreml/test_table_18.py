"""From ``repro latency`` to Table 18 of the shipped paper, by a phone behind the seam."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.coreml.test_latency import FAKE, QUICK, ROOT


def invoke(*arguments: Any) -> Result:
    from repro.cli import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.slow
def test_a_latency_reaches_its_column_and_its_story(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_store: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("REPRO_PACKAGES", str(tmp_path / "packages"))
    monkeypatch.chdir(tmp_path)
    result = invoke("latency", "mobilenetv4_conv_small", "--backend", f"{FAKE}:Phone", *QUICK[:-2], "--format", "json")
    assert result.exit_code == 0, result.output
    (item,) = json.loads(result.stdout)["latencies"]
    data = json.loads(invoke("table", 18, "--no-measure", "--format", "json").stdout)
    cells = {row["model"]: row["cells"]["latency"] for row in data["rows"]}
    assert (cells["MNV4-Conv-S"]["record"], cells["MNV4-Conv-S"]["measured"]) == (item["record"], item["value"])
    assert cells["MNV4-Conv-S"]["status"] == "outside"
    assert {cell["reason"] for name, cell in cells.items() if name != "MNV4-Conv-S"} == {"needs_macos"}
    text = invoke("table", 18, "--no-measure").stdout
    assert "iPhone 13 (A15 Bionic), iOS 17.5.1 21F90; float16, all" in " ".join(text.split())
    story = invoke("explain", 18, "MNV4-Conv-S", "latency").stdout
    assert item["record"] in story
    assert "iPhone 13" in story

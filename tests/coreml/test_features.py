"""Counting what a program moves and computes."""

from __future__ import annotations

from pathlib import Path


def test_a_program_is_counted_from_its_package(package: Path) -> None:
    from repro.coreml.features import features_of
    from repro.coreml.package import Package

    found = features_of(Package.open(package))
    assert found["macs"] == {"conv": 8 * 8 * 4 * 3 * 9 + 8 * 8 * 16 * 4}
    assert found["activation_bytes"] == {"conv": 4 * (8 * 8 * 4 + 8 * 8 * 16), "elementwise": 4 * 8 * 8 * 4}
    assert found["operations"] == {"conv": 2, "elementwise": 1}
    assert found["weight_bytes"] == 4 * (4 * 3 * 9 + 16 * 4)
    assert len(found["content_hash"]) == 64

"""The nightly job: it names what moved, by how much and with what, and leaves the old ledger whole whatever happens."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from repro.compare.drift import causes, drift, newest
from repro.files import new_folder_beside, put_in_place, recover
from repro.results.sources import _digest
from repro.results.store import Store
from repro.spec.project import Project
from tests.conftest import TABLE, counted


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def regenerated(repro, project, *arguments: str):
    done = repro("regenerate", "--project", project, "--output", project / "night", "--jobs", "1", *arguments)
    return done, json.loads((project / "night" / "drift.json").read_text()) if (project / "night").exists() else None


def old_record(record, **changes):
    """A published record as other versions made it."""
    made = {**record.provenance, "time": "2025-01-01T00:00:00.000+00:00"}
    return replace(record, provenance=made, **changes)


@pytest.mark.slow
def test_a_night_then_a_quiet_night_then_a_changed_width(repro, second_paper):
    (second_paper / "results").mkdir()
    (second_paper / "results" / "README.md").write_text("about this ledger")
    variant = Project(root=second_paper).table(1).rows[0].variant
    phone = replace(counted(variant, "params", 1, (16, 16)), metric="top1", protocol={"dataset": "ImageNet-1k"})
    Store(second_paper / "results").put(phone)
    done, first = regenerated(repro, second_paper)
    assert done.exit_code == 0
    assert first["carried"] == 1  # what this machine does not measure stays published
    assert {change["kind"] for change in first["changes"]} == {"appeared"}
    published = {record.id for record in Store(second_paper / "results").all()}
    assert len(published) == 5
    assert phone.id in published
    ledger, tables = contents(second_paper / "results"), contents(second_paper / "night" / "tables")
    assert {f"table_01{suffix}" for suffix in (".tex", ".md", ".csv", ".json", "_measured.tex")} == set(tables)

    done, second = regenerated(repro, second_paper)
    assert done.exit_code == 0
    assert second["changes"] == []
    assert second["unchanged"] == 4
    assert contents(second_paper / "night" / "tables") == tables
    assert contents(second_paper / "results") == ledger  # nothing moved, so nothing is published again
    assert "README.md" in ledger

    models = second_paper / "second_models.py"
    models.write_text(models.read_text().replace("def line(width=8):", "def line(width=8):\n    width += width == 8"))
    _digest.cache_clear()  # a command's process reads a file once; this one is several commands
    everything = contents(second_paper)
    done = repro("regenerate", "--project", second_paper, "--check", "--format", "json", "--jobs", "1")
    assert done.exit_code == 1
    drifted = json.loads(done.stdout)["changes"]
    assert {change["variant"] for change in drifted} == {"line_8"}
    params = next(change for change in drifted if change["metric"] == "params")
    assert params["cells"] == [{"table": 1, "model": "Line-8", "status": "outside"}]
    folded = next(amount for amount in params["amounts"] if amount["convention"] == "folded")
    # 3 x 3 x 3 weights and a bias a channel, and a linear layer of 10 with its bias: 314 for 8 channels, 352 for 9
    assert (folded["before"], folded["now"]) == (0.000314, 0.000352)
    assert "the models' code (second_models)" in params["causes"][0]
    after = contents(second_paper)
    assert {name: text for name, text in after.items() if "__pycache__" not in name} == {
        name: text for name, text in everything.items() if "__pycache__" not in name
    }


def compared(second_paper, old, now):
    table = Project(root=second_paper).table(1)
    from repro.compare.records import Records

    store = Store(second_paper / "store")
    for record in now:
        store.put(record)
    return drift(newest(old), newest(now), [table], Records(store))


def test_an_older_timm_is_named_with_the_rows_and_the_amount(second_paper):
    variant = Project(root=second_paper).table(1).rows[0].variant
    now = counted(variant, "params", 312, (16, 16))
    before = old_record(
        counted(variant, "params", 300, (16, 16)),
        versions={**now.versions, "timm": "1.0.20"},
        subject=replace(now.subject, source="timm 1.0.20"),
    )
    found = compared(second_paper, [before], [replace(now, subject=replace(now.subject, source="timm 1.0.31"))])
    (change,) = found.beyond_noise
    assert [str(use) for use in change.uses] == ["Table 1, Line-8"]
    assert [(str(a.before), str(a.now)) for a in change.shown] == [("0.000300", "0.000312")]
    assert any(cause.startswith("timm 1.0.20 -> ") for cause in change.causes)
    assert not any("torch " in cause for cause in change.causes)
    assert found.exit_code == 1


def test_a_version_that_moved_nothing_is_no_drift(second_paper):
    variant = Project(root=second_paper).table(1).rows[0].variant
    now = counted(variant, "params", 312, (16, 16))
    before = old_record(now, versions={**now.versions, "torch": "2.6.0"})
    found = compared(second_paper, [before], [now])
    assert found.beyond_noise == ()
    assert found.exit_code == 0
    assert found.moved == (f"torch 2.6.0 -> {now.versions['torch']}",)


def test_a_changed_argument_of_the_spec_is_a_cause(second_paper):
    variant = Project(root=second_paper).table(1).rows[0].variant
    now = counted(variant, "params", 352, (16, 16))
    before = old_record(counted(variant, "params", 312, (16, 16)), subject=replace(now.subject, arguments={"width": 7}))
    assert causes(before, now) == ("the spec's arguments {'width': 7} -> {'width': 8}",)


@pytest.mark.parametrize(("shift", "drifts"), [(0.0, False), (0.004, False), (0.2, True)])
def test_noise_of_a_rerun_names_nothing(second_paper, shift, drifts):
    variant = Project(root=second_paper).table(1).rows[0].variant
    noise = random.Random(0)
    base = replace(counted(variant, "params", 1, (16, 16)), unit="ms", details={})

    def timed(centre):
        samples = tuple(centre + noise.gauss(0, 0.01) for _ in range(30))
        return replace(base, samples=samples, value=sorted(samples)[15])

    found = compared(second_paper, [old_record(timed(1.0))], [timed(1.0 + shift)])
    assert bool(found.beyond_noise) is drifts
    assert found.exit_code == int(drifts)


@pytest.mark.slow
def test_a_failure_where_there_was_a_value_is_drift_and_takes_nothing_away(repro, second_paper):
    spec = second_paper / "tables" / "table_01.yaml"
    spec.write_text(TABLE.replace("second_models:line", "second_models:raises").replace("{width: 8}", "{}"))
    project = Project(root=second_paper)
    variant = project.table(1).rows[0].variant
    ledger = Store(second_paper / "results")
    kept = old_record(counted(variant, "params", 312, (16, 16)))
    ledger.put(kept)
    done = repro("regenerate", "--project", second_paper, "--format", "json", "--jobs", "1")
    assert done.exit_code == 3  # both models fail: nothing was measured, and nothing is published
    assert [record.id for record in ledger.all()] == [kept.id]
    assert sorted(path.name for path in Path.cwd().iterdir()) == []
    failed = [change for change in json.loads(done.stdout)["changes"] if change["kind"] == "failed"]
    assert any("this variant is broken" in change["message"] for change in failed)


@pytest.mark.parametrize(("shift", "kept"), [(0.004, True), (0.2, False)])
def test_what_another_machine_timed_is_published_when_it_moved(repro, second_paper, shift, kept):
    variant = Project(root=second_paper).table(1).rows[0].variant
    noise = random.Random(0)

    def timed(centre):
        samples = tuple(centre + noise.gauss(0, 0.01) for _ in range(30))
        base = counted(variant, "params", 1, (16, 16))
        return replace(base, details={}, unit="ms", samples=samples, value=sorted(samples)[15])

    published, tonight = old_record(timed(1.0)), timed(1.0 + shift)
    Store(second_paper / "results").put(published)
    Store(second_paper / "timed").put(tonight)
    arguments = ("--project", second_paper, "--no-measure", "--take", second_paper / "timed")
    assert repro("regenerate", *arguments, "--check").exit_code == int(not kept)
    assert repro("regenerate", *arguments, "--output", second_paper / "night").exit_code == 0
    found = [record.id for record in Store(second_paper / "results").all()]
    assert found == [published.id if kept else tonight.id]


def test_an_installed_package_is_not_written_to(repro, monkeypatch, tmp_path):
    monkeypatch.setattr(Project, "folder", lambda self, name: tmp_path / "data" / name)
    done = repro("regenerate", "--check")
    assert done.exit_code == 2
    assert "give --ledger" in done.stderr


PROGRAM = """
import sys
from pathlib import Path
from repro.files import new_folder_beside, put_in_place, recover
folder, content = Path(sys.argv[1]), sys.argv[2]
recover(folder)
new = new_folder_beside(folder)
for number in range(200):
    (new / f"{number}.json").write_text(content)
put_in_place(new, folder)
"""


@pytest.mark.slow
def test_killed_at_any_point_the_old_tree_or_the_new_one_is_there_whole(tmp_path):
    folder = tmp_path / "ledger"
    assert subprocess.run([sys.executable, "-c", PROGRAM, folder, "start"], check=True).returncode == 0
    last = "start"
    killed = 0
    for attempt in range(25):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, folder, str(attempt)])
        time.sleep(0.02 + 0.006 * attempt)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        recover(folder)
        found = {path.read_text() for path in folder.iterdir()}
        assert len(list(folder.iterdir())) == 200
        assert found in ({last}, {str(attempt)})
        (last,) = found
        assert [path.name for path in tmp_path.iterdir()] == ["ledger"]
    assert killed > 3


@pytest.mark.parametrize("step", ["aside", "done"])
def test_where_names_cannot_be_exchanged_an_interrupted_swap_is_taken_back(tmp_path, monkeypatch, step):
    folder = tmp_path / "ledger"
    folder.mkdir()
    (folder / "old").touch()
    new = new_folder_beside(folder)
    (new / "new").touch()
    monkeypatch.setattr("repro.files._exchange", lambda first, second: False)
    if step == "aside":  # the process dies between the two renames
        folder.rename(tmp_path / ".ledger.old")
        recover(folder)
        assert [path.name for path in folder.iterdir()] == ["old"]
        assert new.is_dir()  # this process still runs: its folder is not removed
    else:
        put_in_place(new, folder)
        assert [path.name for path in folder.iterdir()] == ["new"]
        assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


@pytest.mark.slow
def test_regenerate_killed_while_it_works_leaves_ledger_and_tables(second_paper, tmp_path):
    command = [sys.executable, "-m", "repro", "regenerate", "--project", str(second_paper), "--jobs", "1"]
    command += ["--output", str(tmp_path / "night")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    ledger, night = contents(second_paper / "results"), contents(tmp_path / "night")
    models = second_paper / "second_models.py"
    models.write_text(models.read_text().replace("def line(width=8):", "def line(width=8):\n    width += 1"))
    for seconds in (0.4, 2.0):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert contents(second_paper / "results") == ledger
        assert contents(tmp_path / "night") == night
    done = subprocess.run([*command, "--format", "json"], capture_output=True, check=False)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["changes"]) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".night")] == []

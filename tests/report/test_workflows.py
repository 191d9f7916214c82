"""The workflows: pinned, least privileged, free of a linter's findings, and their shell steps run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from repro.results.store import Store
from repro.spec.project import Project
from tests.conftest import counted

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBS = [(path, name) for path in FILES for name in yaml.safe_load(path.read_text())["jobs"]]


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_the_version_beside(path):
    lines = [line for line in path.read_text().splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_do_nothing_by_itself(path):
    workflow = load(path)
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["group"]


@pytest.mark.parametrize(("path", "name"), JOBS, ids=lambda value: getattr(value, "name", value))
def test_a_job_that_runs_our_code_only_reads(path, name):
    job = load(path)["jobs"][name]
    assert job["timeout-minutes"] <= 180
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    if re.search(r"\b(pip|repro|tox) ", commands):
        assert job["permissions"] == {"contents": "read"}
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_linter_of_workflows_finds_nothing():
    if shutil.which("zizmor") is None:
        pytest.skip("zizmor is not installed")
    done = subprocess.run(
        ["zizmor", "--offline", "--no-progress", *FILES], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("path", "name"), JOBS, ids=lambda value: getattr(value, "name", value))
def test_no_step_puts_an_expression_into_its_shell(path, name):
    for step in load(path)["jobs"][name]["steps"]:
        if "run" in step:
            assert "${{" not in step["run"]
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


@pytest.fixture
def runner(second_paper, tmp_path):
    """Runs the shell steps of the nightly workflow on a small paper's checkout, as a runner would."""
    shims = tmp_path / "shims"
    shims.mkdir()
    calls = tmp_path / "gh.txt"
    calls.touch()
    for name, text in (
        ("repro", f'exec "{sys.executable}" -m repro "$@"'),
        ("gh", f'printf "%s\\n" "$*" >> "{calls}"'),
    ):
        (shims / name).write_text(f"#!/bin/sh\n{text}\n")
        (shims / name).chmod(0o755)
    (second_paper / "results").mkdir()
    (second_paper / "results" / ".gitkeep").touch()
    (second_paper / ".gitignore").write_text("__pycache__/\n")
    origin = tmp_path / "origin.git"
    summary = tmp_path / "summary.md"
    environment = {
        **os.environ,
        "PATH": f"{shims}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **load(ROOT / ".github" / "workflows" / "nightly.yml")["env"],
    }

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(
            command, cwd=second_paper, env=environment, capture_output=True, text=True, check=True
        ).stdout

    git("init", "--quiet", "--initial-branch=main")
    git("init", "--quiet", "--bare", str(origin))
    git("remote", "add", "origin", str(origin))
    git("add", "--all")
    git("commit", "--quiet", "--message", "a paper")

    def run(job: str, name: str, **extra: str) -> subprocess.CompletedProcess:
        steps = load(ROOT / ".github" / "workflows" / "nightly.yml")["jobs"][job]["steps"]
        step = next(step for step in steps if step.get("name") == name)
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=second_paper, env={**environment, **extra}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    run.project, run.summary, run.calls, run.git = second_paper, summary, calls, git
    return run


@pytest.mark.slow
def test_a_night_on_a_small_paper(runner, tmp_path):
    assert runner("count", "Count from scratch").returncode == 0
    assert "# Drift" in runner.summary.read_text()
    artifact = tmp_path / "artifact"
    shutil.copytree(runner.project / "results", artifact)  # what upload and download do
    variant = Project(root=runner.project).table(1).rows[0].variant
    timed = replace(counted(variant, "params", 1, (16, 16)), metric="top1", protocol={"dataset": "ImageNet-1k"})
    Store(runner.project / "timed").put(timed)
    assert runner("publish", "Take the new ledger").returncode == 0
    assert not (runner.project / "results").exists()
    shutil.copytree(artifact, runner.project / "results")
    assert runner("publish", "Merge").returncode == 0
    merged = {record.id for record in Store(runner.project / "results").all()}
    assert timed.id in merged
    assert len(merged) == 5
    verified = runner("publish", "Verify", TOLERANCE="0.01")
    assert verified.returncode == 0, verified.stderr
    assert "::error file=" in verified.stdout  # Line-16's MACs are off, and are an annotation
    assert "# Verification" in runner.summary.read_text()
    assert "<testsuite " in (runner.project / "verdict" / "verify.xml").read_text()
    assert runner("publish", "Report").returncode == 0
    assert (runner.project / "site" / "index.html").is_file()

    (runner.project / "drifted").mkdir()
    (runner.project / "drifted" / "drift.md").write_text("# Drift\n")
    extra = {"GH_TOKEN": "none", "BASE": "main", "BRANCH": "nightly/ledger"}
    proposed = runner("propose", "Propose the ledger", **extra)
    assert proposed.returncode == 0, proposed.stderr
    assert "pr create --base main --head nightly/ledger" in runner.calls.read_text()
    changed = runner.git("show", "--name-only", "--format=", "origin/nightly/ledger").split()
    assert len(changed) == 5
    assert all(name.startswith("results/") for name in changed)
    again = runner("propose", "Propose the ledger", **extra)
    assert again.returncode == 0
    assert "The ledger did not change." in runner.summary.read_text()


@pytest.mark.slow
def test_a_night_that_measured_nothing_fails(runner):
    models = runner.project / "second_models.py"
    models.write_text("raise RuntimeError('these models are gone')\n")
    done = runner("count", "Count from scratch")
    assert done.returncode == 3
    assert "Nothing could be measured." in runner.summary.read_text()


def test_a_verdict_of_nothing_ends_the_night(runner):
    done = runner("publish", "Verify")
    assert done.returncode == 3
    assert "Nothing could be compared." in runner.summary.read_text()

"""What a Ray cluster of two nodes measures is what this machine measures."""

from __future__ import annotations

import pytest

from repro.errors import ReproError
from repro.measure import cluster as room
from repro.measure.cluster import run_on_ray
from repro.measure.needs import count_need
from repro.measure.plan import Job
from repro.measure.workers import Limits, run
from repro.spec.tables import Variant

pytestmark = pytest.mark.slow
LIMITS = Limits(seconds=60)


def job(name, function, **arguments):
    variant = Variant(id=name, builder="python", model=f"second_models:{function}", arguments=arguments)
    return Job(needs=(count_need(variant, "params", (16, 16)),))


def outcomes(jobs, runner, **arguments):
    found = {}
    runner(jobs, limits=LIMITS, done=lambda job, outcome: found.update({job.variant.id: outcome}), **arguments)
    return found


def test_two_nodes_give_the_same_and_say_where(cluster, second_paper):
    jobs = [job("8", "line", width=8), job("16", "line", width=16), job("raises", "raises"), job("dies", "dies")]
    there = outcomes(jobs, run_on_ray, paths=[str(second_paper)])
    where = {name: outcome.pop("provenance") for name, outcome in there.items()}
    assert there == outcomes(jobs, run, workers=1, paths=[str(second_paper)])
    assert there["8"]["params"]["folded"] != there["16"]["params"]["folded"]
    assert there["dies"]["error"]["reason"] == "crashed"
    assert {tuple(sorted(made["packages"])) for made in where.values()} == {tuple(sorted(room._PACKAGES))}


def test_a_lost_node_changes_nothing(cluster, second_paper):
    node = cluster.add_node(num_cpus=2)
    jobs = [job(str(width), "line", width=width) for width in range(1, 13)]
    lost = []

    def done(job, outcome):
        found[job.variant.id] = outcome
        if not lost:
            lost.append(job.name)
            cluster.remove_node(node)

    found = {}
    run_on_ray(jobs, limits=LIMITS, done=done, paths=[str(second_paper)])
    assert lost
    assert {name: outcome["params"]["folded"] for name, outcome in found.items()} == {
        str(width): 27 * width + width + width * 10 + 10 for width in range(1, 13)
    }


def test_other_versions_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(room, "_versions", lambda: dict.fromkeys(room._PACKAGES, "0.0"))
    with pytest.raises(ReproError, match=r"has torch .*, this machine 0\.0"):
        outcomes([job("8", "line", width=8)], run_on_ray)


def test_the_table_is_measured_on_the_cluster(cluster, second_paper, repro, own_store):
    done = repro("table", "1", "--project", second_paper, "--executor", "ray", "--metrics", "params")
    assert done.exit_code in (0, 1), done.output
    assert len(list(own_store.rglob("params-*.json"))) == 2


def test_packages_are_made_on_the_cluster_and_kept_as_here(cluster, second_paper, repro, tmp_path):
    options = ("line_8", "--project", second_paper, "--output", tmp_path / "packages")
    first = repro("export", *options, "--executor", "ray")
    assert first.exit_code == 0, first.output
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "packages").rglob("model.mlmodel")}
    assert len(made) == 1
    assert repro("export", *options).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "packages").rglob("model.mlmodel")} == made

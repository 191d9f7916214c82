"""``repro tables``, ``repro validate`` and ``repro doctor``: a project and this machine at a glance."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from repro.commands.options import (
    open_run,
    project_option,
    store_option,
)
from repro.errors import InputError, UsageError


@click.command()
@project_option
def tables(project: Path | None) -> None:
    """List the tables: rows, how many have a builder, and which metrics they print."""
    from tabulate import tabulate

    from repro.spec.project import Project

    lines = []
    for spec in Project.find(project).tables():
        built = sum(row.variant is not None for row in spec.rows)
        metrics = ", ".join(column.metric for column in spec.columns if not column.descriptive)
        lines.append(
            [
                spec.number,
                len(spec.rows),
                built,
                textwrap.shorten(metrics or "settings", 36, placeholder="…"),
                textwrap.shorten(spec.title, 40, placeholder="…"),
            ]
        )
    click.echo(tabulate(lines, headers=["Table", "Rows", "Built", "Metrics", "Title"], tablefmt="simple"))


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@project_option
def validate(files: tuple[Path, ...], project: Path | None) -> None:
    """Check table specs: the given FILES, or all of the project and its claims.

    A mistake is a line, file:line: path: message.
    """
    from repro.spec.claims import load_claims
    from repro.spec.parse import load_table
    from repro.spec.project import Project

    found = Project.find(project)
    paths = list(files) or list(found.paths.values())
    if not paths:
        raise UsageError(f"{found.folder('tables')}: no table_*.yaml there")
    problems = []
    for path in paths:
        try:
            load_table(path)
        except InputError as error:
            problems += error.problems
    claims = found.folder("tables") / "claims.yaml"
    if not problems and not files and claims.is_file():
        load_claims(claims, {spec.number: spec for spec in found.tables()})
    if not files:
        try:
            _ = found.manifest
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    click.echo(f"{len(paths)} table spec{'s' if len(paths) != 1 else ''} without a mistake")


@click.command()
@project_option
@store_option
def doctor(project: Path | None, store: Path | None) -> None:
    """Say what this machine can measure, and what is missing for the rest."""
    from repro.render.doctor import doctor as report

    run = open_run(project, store)
    click.echo(report(run.project, run.store.folder), nl=False)

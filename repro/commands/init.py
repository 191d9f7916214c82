"""``repro init``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.errors import UsageError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--table", "number", type=click.IntRange(min=1), default=1, show_default=True,
              help="Number of the first table.")  # fmt: skip
@click.option("--title", default="The table's caption, as printed.", show_default=True)
@click.option("--paper", default="The paper, with venue, year or identifier.", show_default=True)
@click.option("--model", "models", multiple=True, metavar="NAME",
              help="A model of timm's that the table prints; may be repeated. Default: resnet18.")  # fmt: skip
def init(folder: Path, number: int, title: str, paper: str, models: tuple[str, ...]) -> None:
    """Begin another paper's project in FOLDER: a table spec to fill in, which already builds and counts its models.

    Nothing that is there is overwritten.
    """
    from repro.files import write_atomically
    from repro.render.scaffold import scaffold

    names = tuple(dict.fromkeys(models or ("resnet18",)))
    files = scaffold(number=number, title=title, paper=paper, models=names)
    there = [folder / name for name in files if (folder / name).exists()]
    others = sorted((folder / "tables").glob("table_*.yaml")) if folder.is_dir() else []
    if there or others:
        raise UsageError(f"{(there or others)[0]}: there already; nothing was written")
    for name, text in files.items():
        write_atomically(folder / name, text)
        click.echo(f"repro: wrote {folder / name}", err=True)
    click.echo(
        f"Next: fill in {folder / f'tables/table_{number:02d}.yaml'}, then\n"
        f"  cd {folder}\n  repro validate\n  repro table {number}\n  repro verify\n  repro report"
    )

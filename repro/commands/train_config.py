"""``repro train-config``."""

from __future__ import annotations

from pathlib import Path

import click

from repro.commands.options import OFF, OK, project_option
from repro.errors import UsageError


@click.command("train-config")
@click.argument("model", default="iformer_m")
@click.option("--table", "number", type=int, default=9, show_default=True, help="The table of training settings.")
@click.option("--distilled", is_flag=True, help="With the paper's teacher; the model needs a distillation head.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file, too.")
@project_option
def train_config(model: str, number: int, distilled: bool, output: Path | None, project: Path | None) -> int:
    """Print the paper's training settings as a configuration (YAML) for timm's train script, for MODEL.

    The model is built, and the settings that concern it are checked on it: no stochastic depth, no layer scale.

    Exit codes: 0 the model is as the table says, 1 it is not.
    """
    from repro.files import write_atomically
    from repro.spec.project import Project
    from repro.spec.training import as_yaml
    from repro.spec.training import train_config as settings_of

    found = Project.find(project)
    table = found.table(number)
    config = settings_of(table, model, distilled=distilled)

    import timm

    import repro.models  # noqa: F401 - registers the ported families
    from repro.models.catalogue import without_initialisation
    from repro.models.regularisers import layer_scales, stochastic_depth
    from repro.spec.reader import suggestion

    if not timm.is_model(model):
        raise UsageError(f"timm {timm.__version__} has no model {model!r}{suggestion(model, timm.list_models())}")
    text = as_yaml(config, table)
    if output is not None:
        write_atomically(output, text)
        click.echo(f"repro: wrote {output}", err=True)
    click.echo(text, nl=False)
    with without_initialisation():
        built = timm.create_model(model)
    printed = {row.model: row.reported("setting").text for row in table.rows}
    wrong = 0
    for name, parts in (("Stochastic depth", stochastic_depth(built)), ("Layer scale", layer_scales(built))):
        if printed.get(name) != "none":
            continue
        wrong += bool(parts)
        said = f"{len(parts)} parts have it, {parts[0]} first" if parts else "none in the built model, as printed"
        click.echo(f"repro: {model}: {name}: {said}", err=True)
    return OFF if wrong else OK

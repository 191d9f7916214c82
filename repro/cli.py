"""The commands, one error boundary and the exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from repro import __version__
from repro.commands.options import INTERRUPTED, OK, USAGE
from repro.errors import ReproError

# Where each command is; a module is imported when its command runs, so that none waits for another's imports.
COMMANDS = {
    "table": "repro.commands.table:table",
    "verify": "repro.commands.verify:verify",
    "explain": "repro.commands.explain:explain",
    "claims": "repro.commands.claims:claims",
    "recover": "repro.commands.recover:recover",
    "evaluate": "repro.commands.evaluate:evaluate",
    "checkpoints": "repro.commands.checkpoints:checkpoints",
    "export": "repro.commands.export:export",
    "latency": "repro.commands.latency:latency",
    "estimate": "repro.commands.estimate:estimate",
    "records": "repro.commands.records:records",
    "run-package": "repro.commands.export:run_package",
    "train-config": "repro.commands.train_config:train_config",
    "plot": "repro.commands.plot:plot",
    "report": "repro.commands.report:report",
    "regenerate": "repro.commands.regenerate:regenerate",
    "check-tables": "repro.commands.check_tables:check_tables",
    "init": "repro.commands.init:init",
    "tables": "repro.commands.project:tables",
    "validate": "repro.commands.project:validate",
    "doctor": "repro.commands.project:doctor",
}


class _Commands(click.Group):
    """Finds commands by name. Turns every user mistake into its lines and exit code 2; a traceback is left to bugs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest names where there is no such command."""
        from repro.spec.reader import suggestion

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **kwargs) or OK)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"repro: {error.format_message()}", err=True)
            sys.exit(USAGE)
        except ReproError as error:
            for line in error.lines:
                click.echo(f"repro: {line}", err=True)
            sys.exit(USAGE)
        except (KeyboardInterrupt, click.Abort):
            click.echo("repro: interrupted; what was measured is kept", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()  # the reader went away; nothing is left to say
            sys.exit(OK)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repro")
def main() -> None:
    """Regenerate a paper's tables from its released code and weights, and say cell by cell what reproduces.

    Exit codes: 0 all compared cells hold, 1 some cell is outside or failed, 2 bad usage or input, 3 nothing could be
    compared, 130 interrupted.
    """


if __name__ == "__main__":
    main()

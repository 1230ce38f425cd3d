"""From ``sys.argv`` to an exit code: 0, 2 with one sentence for what the user can put right, 130 for a cut-off run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from dynamo_core.cli.group import root
from dynamo_core.cli.usage import usage_sentence
from dynamo_core.errors import StartupError

__all__ = ["main", "run"]


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    try:
        result = root.main(list(arguments), prog_name="dynamo", standalone_mode=False)
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.1 prints the help by itself
            error.show()
            return 2
        return _refuse(usage_sentence(error))
    except click.ClickException as error:
        return _refuse(error.format_message())
    except StartupError as error:
        return _refuse(error.message, getattr(error, "lines", ()))
    except (click.Abort, KeyboardInterrupt):
        return 130
    return result if isinstance(result, int) else 0


def _refuse(sentence: str, lines: Sequence[str] = ()) -> int:
    for line in lines:
        click.echo(f"  | {line}", err=True)
    click.echo(sentence, err=True)
    return 2

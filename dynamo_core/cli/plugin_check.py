"""``dynamo plugins check``."""

from __future__ import annotations

import click

__all__ = ["check"]


@click.command("check")
@click.argument("target", metavar="PATH|NAME")
def check(target: str) -> int:
    """What is wrong with a plugin: a folder with a pyproject.toml, a module's file, or an installed plugin's name.

    One line a finding, and exit code 1 if there is any. The plugin is imported in a process of its own.
    """
    from dynamo_core.plugins.check import check_plugin

    found = False
    for checked in check_plugin(target):
        for finding in checked.findings:
            found = True
            click.echo(f"{checked.name}: {finding.check}: {finding.message}")
        if not checked.findings:
            click.echo(f"{checked.name}: no findings, imported in {(checked.import_seconds or 0) * 1000:.1f} ms")
    return 1 if found else 0

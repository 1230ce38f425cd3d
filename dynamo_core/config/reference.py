"""The table of settings in ``docs/configuration.md``, made from :class:`~dynamo_core.config.settings.Settings`.

``python -m dynamo_core.config.reference docs/configuration.md`` renews it in place.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from dynamo_core.config.fields import Field, settings_fields
from dynamo_core.plugins.decoding import describe_type

__all__ = ["MARK_BEGIN", "MARK_END", "settings_markdown", "with_settings"]

MARK_BEGIN = "<!-- settings: made by python -m dynamo_core.config.reference -->"
MARK_END = "<!-- end of settings -->"


def settings_markdown() -> str:
    """A table of every setting: key, flag and the commands that have it, environment names, type, default, meaning."""
    head = (
        "| Key in `dynamo.toml` | Flag | Environment | Type | Default | Meaning |",
        "|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *(_row(field) for field in settings_fields().values()))) + "\n"


def with_settings(document: str) -> str:
    """``document`` with the table between its two marks renewed. Raises :class:`ValueError` where the marks are missing."""
    before, begin, rest = document.partition(MARK_BEGIN)
    _, end, after = rest.partition(MARK_END)
    if not begin or not end:
        raise ValueError(f"the document lacks the lines {MARK_BEGIN!r} and {MARK_END!r}")
    return f"{before}{MARK_BEGIN}\n\n{settings_markdown()}\n{MARK_END}{after}"


def _row(field: Field) -> str:
    flag = "—"
    if field.flag is not None:
        flag = f"`{field.flag}`" + (f" ({', '.join(field.commands)})" if field.commands else "")
    env = ", ".join(f"`{name}`" for name in field.env) or "—"
    cells = (f"`{field.name}`", flag, env, _type(field), _default(field), field.doc)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(field: Field) -> str:
    if field.is_list:
        return "list of names"
    return describe_type(field.type).removeprefix("a ")


def _default(field: Field) -> str:
    if field.default is None or field.default in ((), {}):
        return "—"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _main(path: str) -> None:
    document = Path(path)
    document.write_text(with_settings(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])

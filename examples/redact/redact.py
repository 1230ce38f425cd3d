"""Take e-mail addresses out of what a model says, also when they come in pieces."""

import re
from collections.abc import Callable, Iterator

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import OutputStream
from dynamo_core.specs import OutputFilterSpec

ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")
LAST_WORD = re.compile(r"[\w.+@-]{1,320}\Z")
"""What may still become an address; none is longer than 320 characters."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    replacement: str = "[address]"
    """What stands in the place of an address."""
    except_scope: str = "unredacted"
    """Principals with this scope get the text as it is."""


class Redactor:
    """One stream. Holds back the last word only, so that text flows on."""

    def __init__(self, replacement: str) -> None:
        self.replacement = replacement
        self.held = ""

    def push(self, text: str) -> str:
        text = self.held + text
        word = LAST_WORD.search(text)
        end = word.start() if word else len(text)
        self.held = text[end:]
        return ADDRESS.sub(self.replacement, text[:end])

    def finish(self) -> str:
        return ADDRESS.sub(self.replacement, self.held)


def make(config: Config) -> Callable[[OutputStream], Redactor | None]:
    def open_filter(stream: OutputStream) -> Redactor | None:
        trusted = stream.principal is not None and config.except_scope in stream.principal.scopes
        return None if trusted else Redactor(config.replacement)

    return open_filter


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_output_filters() -> Iterator[OutputFilterSpec]:
    yield OutputFilterSpec(name="redact", factory=make, description="Takes out e-mail addresses.")

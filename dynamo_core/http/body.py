"""Request bodies: JSON to msgspec Structs, and what is said to the client when it does not fit.

Strict about types, lenient about names: a field that a route does not know is ignored, and named in a debug log line.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
from litestar.connection import Request
from litestar.dto import AbstractDTO
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Receive, Scope

from dynamo_core.errors import Cancelled, InvalidRequest

if TYPE_CHECKING:
    from litestar.openapi.spec import Reference, Schema

__all__ = ["CLIENT_CLOSED", "MISSING_BODY", "JsonBody", "LeanRequest", "json_body", "read_body"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

CLIENT_CLOSED = "The client closed the request."
MISSING_BODY = "The request body is missing; send a JSON object."

_WHERE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`")
_MISTYPED = re.compile(r"Expected `(.+)`, got `(.+)`")
_OUT_OF_BOUNDS = re.compile(r"Expected `(\w+)`(?P<length> of length)? (?P<op><=|>=|<|>|==) (?P<bound>\S+)")
_BYTE = re.compile(r"\(byte (\d+)\)")
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")

_NOUNS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "greater than", "<": "less than", "==": "exactly"}


class LeanRequest(Request[Any, Any, Any]):
    """The one header that every body needs is looked for as it came: Litestar's own way decodes them all, 3 µs."""

    @property
    def content_length(self) -> int | None:
        return _content_length(self.scope)


class JsonBody(AbstractDTO[T]):
    """How Litestar reads a body of one Struct type; made by :func:`json_body`.

    One pass of msgspec over the bytes, without the intermediate objects of Litestar's own path. The schema in
    ``/openapi.json`` is the Struct's.
    """

    decoder: ClassVar[msgspec.json.Decoder[Any]]

    def decode_bytes(self, value: bytes) -> Any:
        return self.decode(value, self.asgi_connection.scope["path"])

    @classmethod
    def decode(cls, value: bytes, path: str) -> Any:
        """``path`` is for the log. Raises :class:`~dynamo_core.errors.InvalidRequest`."""
        body = _decode(cls.decoder, value)
        if _log.isEnabledFor(logging.DEBUG):
            _log_unknown_fields(path, value, cls.decoder.type)
        return body

    def decode_builtins(self, value: dict[str, Any]) -> Any:
        del value
        raise InvalidRequest("The request body must be JSON, not a form.", code="invalid_body")

    @classmethod
    def create_for_field_definition(cls, field_definition: Any, handler_id: str, backend_cls: Any = None) -> None:
        """Litestar's transfer models are not needed: the Struct is the model."""

    @classmethod
    def create_openapi_schema(cls, field_definition: Any, handler_id: str, schema_creator: Any) -> Reference | Schema:
        del handler_id
        schema: Reference | Schema = schema_creator.for_field_definition(field_definition)
        return schema

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[Any, None, None]:
        del model_type
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: Any) -> bool:
        del field_definition
        return False


def json_body(model: type[T]) -> type[JsonBody[T]]:
    """The ``dto`` of a handler whose ``data`` is of this Struct type."""
    attributes = {"decoder": msgspec.json.Decoder(model), "model_type": model}
    return type(f"JsonBody[{model.__name__}]", (JsonBody,), attributes)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """What Litestar's ``Request.body`` reads, with the same errors."""
    event: Any = await receive()
    whole: bytes = event.get("body", b"")
    if 0 < len(whole) <= limit and not event.get("more_body"):
        return whole  # nearly all come at once
    if (_content_length(scope) or 0) > limit:
        raise RequestEntityTooLarge
    body = bytearray()
    while event["type"] == "http.request":
        body += event.get("body", b"")
        if len(body) > limit:
            raise RequestEntityTooLarge
        if not event.get("more_body"):
            if not body:
                raise InvalidRequest(MISSING_BODY, code="invalid_body")
            return bytes(body)
        event = await receive()
    raise Cancelled(CLIENT_CLOSED)


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _decode(decoder: msgspec.json.Decoder[Any], value: bytes) -> Any:
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(_malformed(error, value), code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.", code="invalid_json") from None


def _malformed(error: Exception, value: bytes) -> str:
    words = str(error)
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in words:  # msgspec before 0.23, and from then on
        return "The request body is not valid JSON: it is not UTF-8."
    place = _BYTE.search(words)
    if "surrogate" in words or (place is None and _HALF_PAIR.search(value)):
        return "The request body is not valid JSON: it holds half of a surrogate pair (as in \\ud83d), which is no character."
    if place is None:
        return "The request body is not valid JSON: it ends too early."
    return f"The request body is not valid JSON at byte {place[1]}."


def _misfit(words: str) -> InvalidRequest:
    """Our sentence for one of msgspec's; the tests go through every form that it has."""
    parts = _WHERE.fullmatch(words)
    what, path = (parts["what"], parts["path"] or "") if parts else (words, "")
    path = path.replace("[...]", "")
    subject = f"`{path}`" if path else "The request body"
    if missing := _MISSING.fullmatch(what):
        field = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"`{field}` is required.", param=field, code="missing_required_parameter")
    if mistyped := _MISTYPED.fullmatch(what):
        wanted = _either(mistyped[1]) if "key" not in words[len(what) : len(what) + 12] else "an object with integers as keys"
        sentence = f"{subject} must be {wanted}, not {_either(mistyped[2])}."
        return InvalidRequest(sentence, param=path or None, code="invalid_type")
    if bounds := _OUT_OF_BOUNDS.fullmatch(what):
        return InvalidRequest(f"{subject} must {_bound(bounds)}.", param=path or None, code="invalid_value")
    return InvalidRequest(f"{subject} has a value that is not allowed here.", param=path or None, code="invalid_value")


def _either(types: str) -> str:
    nouns = [_NOUNS.get(name, name) for name in types.split(" | ")]
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} or {nouns[-1]}"


def _bound(bounds: re.Match[str]) -> str:
    limit = bounds["bound"].removesuffix(".0")
    if bounds["length"]:
        unit = "characters" if bounds[1] == "str" else "items"
        return f"have {_BOUNDS[bounds['op']]} {limit} {unit.removesuffix('s') if limit == '1' else unit}"
    return f"be {_BOUNDS[bounds['op']]} {limit}"


def _log_unknown_fields(path: str, value: bytes, model: Any) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(model)}
    unknown = [name for name in msgspec.json.decode(value) if name not in known]
    if unknown:
        _log.debug("%s ignores unknown fields: %s", path, ", ".join(unknown))

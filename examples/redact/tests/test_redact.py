import pytest
import redact

from dynamo_core.contracts import OutputStream, Principal

TEXT = "Write to ann.b+c@mail.example.org, or to @nobody; a@b is no address. bob@example.com"
SAID = "Write to [address], or to @nobody; a@b is no address. [address]"


def stream(principal=None):
    return OutputStream(request_id="1", model="m", endpoint="chat", headers={}, principal=principal, index=0)


def opened(principal=None):
    (spec,) = redact.dynamo_output_filters()
    return spec.factory(redact.Config())(stream(principal))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_addresses_go_however_the_text_is_cut(size):
    redactor = opened()
    pieces = [redactor.push(TEXT[start : start + size]) for start in range(0, len(TEXT), size)]
    assert "".join(pieces) + redactor.finish() == SAID


def test_only_the_last_word_is_held_back():
    redactor = opened()
    assert redactor.push("Hello there, ann") == "Hello there, "
    assert redactor.push(" said") == "ann "


def test_an_endless_word_flows_on():
    redactor = opened()
    told = "".join(redactor.push("x" * 100) for _ in range(10))
    assert len(told) == 1000 - 320


def test_trusted_principals_get_everything():
    assert opened(Principal(id="ann", scopes=frozenset({"unredacted"}))) is None
    assert opened(Principal(id="bob")) is not None

import pytest

from dynamo_core.contracts import OutputStream
from dynamo_core.errors import DynamoError, PermissionDenied, PluginError
from dynamo_core.plugins import activate

FILTER = """
class Filter:
    def __init__(self): self.held = ""
    def push(self, text): {push}
    def finish(self): return {finish}
@hookimpl
def dynamo_output_filters():
    yield OutputFilterSpec(name="{name}", factory=lambda config: {open})
"""


def code(name: str, push: str = "return text.upper()", finish: str = "''", open: str = "lambda stream: Filter()") -> str:
    return FILTER.format(name=name, push=push, finish=finish, open=open)


@pytest.fixture
def stream() -> OutputStream:
    return OutputStream(request_id="r", model="m", endpoint="chat", headers={"x-user": "ann"}, principal=None, index=0)


def test_without_a_filter_there_is_nothing_to_ask(install) -> None:
    install("acme", "@hookimpl\ndef dynamo_engines(): return []")
    assert activate(["acme"]).output_filter is None


def test_only_a_frontend_filters(install) -> None:
    install("acme", code("acme"))
    assert activate(["acme"], process="worker").output_filter is None


def test_each_stream_has_a_filter_of_its_own(install, stream: OutputStream) -> None:
    install("acme", code("acme", push="self.held += text; return self.held"))
    compiled = activate(["acme"])
    assert compiled.plugins[0].provides == ("output-filter:acme",)
    one, two = compiled.output_filter(stream), compiled.output_filter(stream)
    assert (one.push("a"), one.push("b"), two.push("c")) == ("a", "ab", "c")


def test_a_plugin_may_leave_a_stream_alone(install, stream: OutputStream) -> None:
    install("acme", code("acme", open="lambda stream: Filter() if stream.principal else None"))
    install("other", code("other"))
    assert activate(["acme"]).output_filter(stream) is None
    assert activate(["acme", "other"]).output_filter(stream).push("a") == "A"


def test_several_filters_pass_the_text_on_and_so_what_they_held_back(install, stream: OutputStream) -> None:
    install("one", code("one", push="self.held += text; return ''", finish="self.held"))
    install("two", code("two", push="return text[::-1]", finish="'!'"))
    both = activate(["one", "two"]).output_filter(stream)
    assert (both.push("ab"), both.push("cd"), both.finish()) == ("", "", "dcba!")
    turned = activate(["two", "one"]).output_filter(stream)
    assert (turned.push("ab"), turned.push("cd"), turned.finish()) == ("", "", "badc!")


@pytest.mark.parametrize(
    "broken",
    [
        {"push": "raise ValueError('secret')"},
        {"push": "return None"},
        {"finish": "1 / 0"},
        {"finish": "b''"},
        {"open": "lambda stream: stream.nothing"},
        {"open": "lambda stream: 'no filter'"},
    ],
)
def test_a_broken_filter_ends_the_request_without_internals_and_is_counted(install, stream: OutputStream, broken) -> None:
    install("acme", code("acme", **broken))
    compiled = activate(["acme"])

    def use() -> None:
        opened = compiled.output_filter(stream)
        opened.push("a")
        opened.finish()

    with pytest.raises(DynamoError) as caught:
        use()
    assert (caught.value.status, caught.value.code) == (500, "plugin_failed")
    assert "secret" not in caught.value.message
    assert compiled.faults.counts == {("acme", "dynamo_output_filters"): 1}


def test_a_filter_may_refuse_on_purpose(install, stream: OutputStream) -> None:
    refuse = "raise PermissionDenied('not for you')"
    install("acme", "from dynamo_core.errors import PermissionDenied\n" + code("acme", push=refuse))
    compiled = activate(["acme"])
    with pytest.raises(PermissionDenied, match="not for you"):
        compiled.output_filter(stream).push("a")
    assert compiled.faults.counts == {}


def test_an_async_open_is_refused(install) -> None:
    install("acme", "async def open(stream): return None\n" + code("acme", open="open"))
    with pytest.raises(PluginError, match="an output filter is opened without await, so use def"):
        activate(["acme"])

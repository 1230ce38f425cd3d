import asyncio

import pytest

from dynamo_core.contracts.gate import HttpRequestInfo, PreparedRequest, Principal
from dynamo_core.errors import ConfigError, DynamoError, PermissionDenied, PluginError, RateLimited, Unauthenticated
from dynamo_core.plugins import activate

BY_HEADER = """
@hookimpl
def dynamo_authenticate(request):
    user = request.headers.get("{header}")
    return Principal(id=user) if user else None
"""
ABSTAIN = "@hookimpl\ndef dynamo_authenticate(request): return None"
ABSTAIN_ASYNC = "@hookimpl\nasync def dynamo_authenticate(request): return None"
DENY = """
from dynamo_core.errors import PermissionDenied
@hookimpl
def dynamo_authenticate(request):
    raise PermissionDenied("not you")
"""


def prepared() -> PreparedRequest:
    return PreparedRequest(
        id="r", model="m", endpoint="chat", principal=None, headers={}, body=None, token_ids=[1, 2], max_tokens=4
    )


def test_an_empty_seam_is_none(install) -> None:
    install("acme", "@hookimpl\ndef dynamo_engines(): return []")
    compiled = activate(["acme"])
    assert (compiled.authenticate, compiled.rate_limit, compiled.prepare, compiled.finished) == (None, None, None, None)
    assert (compiled.http, compiled.metrics) == ((), ())


def test_a_principal_admits(install, request_info: HttpRequestInfo) -> None:
    install("acme", BY_HEADER.format(header="x-user"))
    compiled = activate(["acme"])
    assert compiled.plugins[0].provides == ("authenticator:acme",)
    assert not compiled.authenticate_async
    assert compiled.authenticate(request_info) == Principal(id="ann")


def test_all_abstaining_is_401(install, request_info: HttpRequestInfo) -> None:
    install("one", ABSTAIN)
    with pytest.raises(Unauthenticated):
        activate(["one"]).authenticate(request_info)
    install("two", ABSTAIN)
    with pytest.raises(Unauthenticated) as caught:
        activate(["one", "two"]).authenticate(request_info)
    assert caught.value.status == 401


def test_who_abstains_leaves_it_to_the_next(install, request_info: HttpRequestInfo) -> None:
    install("one", ABSTAIN)
    install("two", BY_HEADER.format(header="x-user"))
    assert activate(["one", "two"]).authenticate(request_info).id == "ann"


def test_an_exception_denies_before_the_next_is_asked(install, request_info: HttpRequestInfo) -> None:
    install("one", DENY)
    install("two", BY_HEADER.format(header="x-user"))
    with pytest.raises(PermissionDenied, match="not you"):
        activate(["one", "two"]).authenticate(request_info)
    assert activate(["two", "one"]).authenticate(request_info).id == "ann"


def test_registered_authenticators_and_functions_are_one_chain_in_plugin_order(install, request_info: HttpRequestInfo) -> None:
    registered = (
        "@hookimpl\ndef dynamo_authenticators():\n"
        "    yield AuthenticatorSpec(name='{name}-a', factory=lambda config: lambda request: {result})\n"
    )
    install("one", registered.format(name="one", result="None") + ABSTAIN)
    install("two", registered.format(name="two", result="Principal(id='two')"))
    install("three", BY_HEADER.format(header="x-user"))
    assert activate(["one", "two", "three"]).authenticate(request_info).id == "two"
    assert activate(["one", "three", "two"]).authenticate(request_info).id == "ann"


def test_tryfirst_and_trylast_move_a_function(install, request_info: HttpRequestInfo) -> None:
    code = "@hookimpl({mark})\ndef dynamo_authenticate(): return Principal(id='{name}')"
    install("early", code.format(mark="tryfirst=True", name="early"))
    install("late", code.format(mark="trylast=True", name="late"))
    install("plain", code.format(mark="", name="plain"))
    assert activate(["late", "plain", "early"]).authenticate(request_info).id == "early"
    assert activate(["late", "plain"]).authenticate(request_info).id == "plain"


async def test_one_async_function_makes_the_chain_async_and_keeps_its_order(install, request_info: HttpRequestInfo) -> None:
    install("one", ABSTAIN)
    install("two", ABSTAIN_ASYNC)
    install("three", BY_HEADER.format(header="x-user"))
    install("four", DENY)
    compiled = activate(["one", "two", "three", "four"])
    assert compiled.authenticate_async
    assert (await compiled.authenticate(request_info)).id == "ann"
    with pytest.raises(PermissionDenied):
        await activate(["two", "four", "three"]).authenticate(request_info)
    with pytest.raises(Unauthenticated):
        await activate(["one", "two"]).authenticate(request_info)


@pytest.mark.parametrize(
    "code",
    [
        "@hookimpl\ndef dynamo_authenticate(request): raise ValueError('secret')",
        "@hookimpl\nasync def dynamo_authenticate(request): raise ValueError('secret')",
        "@hookimpl\ndef dynamo_rate_limit(request): raise ValueError('secret')",
    ],
)
def test_a_policy_plugin_that_breaks_fails_the_request_and_is_counted(install, request_info, caplog, code: str) -> None:
    install("acme", code)
    compiled = activate(["acme"])

    async def ask() -> None:
        if compiled.rate_limit is not None:
            compiled.rate_limit(request_info, None)
        elif compiled.authenticate_async:
            await compiled.authenticate(request_info)
        else:
            compiled.authenticate(request_info)

    with pytest.raises(DynamoError) as caught:
        asyncio.run(ask())
    assert (type(caught.value), caught.value.status, caught.value.code) == (DynamoError, 500, "plugin_failed")
    assert "secret" not in caught.value.message
    assert "plugin 'acme' raised in dynamo_" in caplog.text
    assert "ValueError: secret" in caplog.text
    ((plugin, _), count), *_ = compiled.faults.counts.items()
    assert (plugin, count) == ("acme", 1)


@pytest.mark.parametrize(
    "result",
    ["'ann'", "True", "{'id': 'ann'}", "later()"],
)
def test_a_wrong_result_of_an_authenticator_admits_nobody_and_names_the_plugin(install, request_info, caplog, result) -> None:
    install(
        "acme",
        f"""
        async def later(): return Principal(id="ann")
        @hookimpl
        def dynamo_authenticate(request): return {result}
        """,
    )
    compiled = activate(["acme"])
    with pytest.raises(DynamoError) as caught:
        compiled.authenticate(request_info)
    assert caught.value.status == 500
    assert "plugin 'acme' returned" in caplog.text
    assert compiled.faults.counts == {("acme", "dynamo_authenticate"): 1}


@pytest.mark.parametrize(
    "signature", ["request, config", "config, request", "request, config=None", "*, request, config", "request, x=1, config=2"]
)
def test_arguments_come_by_name_in_any_order(install, request_info, signature: str) -> None:
    install(
        "acme",
        f"""
        class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
            suffix: str = ""
        @hookimpl
        def dynamo_config(): return Config
        @hookimpl
        def dynamo_authenticate({signature}): return Principal(id=request.headers["x-user"] + config.suffix)
        """,
    )
    assert activate(["acme"], tables={"acme": {"suffix": "!"}}).authenticate(request_info).id == "ann!"


def test_a_function_that_takes_all_arguments_in_order_is_called_as_it_is(install) -> None:
    from dynamo_core.plugins.hooks import Implementation, bind

    def limit(request, principal): ...

    implementation = Implementation("dynamo_rate_limit", limit, ("request", "principal"), 1, False)
    assert bind(implementation, ("request", "principal"), None) is limit


LIMIT = """
from dynamo_core.errors import RateLimited
calls = []
@hookimpl
{mark}def dynamo_rate_limit(principal, request):
    calls.append(principal)
    if principal and principal.id == "greedy":
        raise RateLimited("too much", retry_after=2)
"""


def test_every_limiter_is_asked_and_the_first_that_raises_refuses(install, request_info: HttpRequestInfo) -> None:
    import sys

    modules = [install(name, LIMIT.format(mark="")) for name in ("one", "two")]
    compiled = activate(["one", "two"])
    assert compiled.plugins[0].provides == ("rate-limiter:one",)
    assert compiled.rate_limit(request_info, None) is None
    with pytest.raises(RateLimited) as caught:
        compiled.rate_limit(request_info, Principal(id="greedy"))
    assert caught.value.retry_after == 2
    assert [len(sys.modules[module].calls) for module in modules] == [2, 1]


async def test_sync_and_async_limiters_mix(install, request_info: HttpRequestInfo) -> None:
    install("one", LIMIT.format(mark=""))
    install("two", LIMIT.format(mark="async "))
    compiled = activate(["one", "two"])
    assert compiled.rate_limit_async
    assert await compiled.rate_limit(request_info, None) is None
    with pytest.raises(RateLimited):
        await compiled.rate_limit(request_info, Principal(id="greedy"))
    only = activate(["two"])
    with pytest.raises(RateLimited):
        await only.rate_limit(request_info, Principal(id="greedy"))


def test_a_limiter_whose_answer_nobody_would_read_fails_the_request(install, request_info, caplog) -> None:
    install(
        "acme",
        """
        async def check(request, principal): ...
        @hookimpl
        def dynamo_rate_limiters():
            yield RateLimiterSpec(name="acme", factory=lambda config: lambda request, principal: check(request, principal))
        """,
    )
    with pytest.raises(DynamoError):
        activate(["acme"]).rate_limit(request_info, None)
    assert "returned coroutine from dynamo_rate_limiters, which must return None" in caplog.text


def test_prepare_may_change_the_request_in_place(install) -> None:
    code = "@hookimpl\ndef dynamo_prepare(request): request.token_ids.append({token})"
    install("one", code.format(token=7))
    install("two", code.format(token=8))
    request = prepared()
    activate(["one", "two"]).prepare(request)
    assert request.token_ids == [1, 2, 7, 8]


async def test_prepare_may_be_async(install) -> None:
    install("acme", "@hookimpl\nasync def dynamo_prepare(request): request.priority = 3")
    compiled = activate(["acme"])
    assert compiled.prepare_async
    request = prepared()
    await compiled.prepare(request)
    assert request.priority == 3


def test_factories_get_the_configuration_and_run_in_the_frontend_only(install, request_info: HttpRequestInfo) -> None:
    install(
        "acme",
        """
        class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
            user: str
        @hookimpl
        def dynamo_config(): return Config
        def make(config):
            if config.user == "nobody":
                raise ValueError("who?")
            return lambda request: Principal(id=config.user)
        @hookimpl
        def dynamo_authenticators():
            yield AuthenticatorSpec(name="acme", factory=make)
        """,
    )
    assert activate(["acme"], tables={"acme": {"user": "bob"}}).authenticate(request_info).id == "bob"
    with pytest.raises(PluginError, match="cannot make its authenticator 'acme': ValueError: who"):
        activate(["acme"], tables={"acme": {"user": "nobody"}})
    assert activate(["acme"], tables={"acme": {"user": "nobody"}}, process="worker").authenticate is None


def test_a_factory_that_makes_no_function_is_refused(install) -> None:
    install(
        "acme",
        "@hookimpl\ndef dynamo_authenticators():\n    yield AuthenticatorSpec(name='acme', factory=lambda config: 'key')",
    )
    with pytest.raises(PluginError, match="the factory of authenticator 'acme' gives str, not a function"):
        activate(["acme"])


def test_a_factory_may_refuse_with_a_sentence_of_its_own(install) -> None:
    install(
        "acme",
        """
        from dynamo_core.errors import ConfigError
        def make(config): raise ConfigError("keys.toml is missing: make it.")
        @hookimpl
        def dynamo_authenticators(): yield AuthenticatorSpec(name="acme", factory=make)
        """,
    )
    with pytest.raises(ConfigError, match=r"plugin 'acme' \(acme-plugin 1.0\): keys.toml is missing"):
        activate(["acme"])

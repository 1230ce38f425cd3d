import hashlib

import api_keys
import pytest

from dynamo_core.contracts import HttpRequestInfo, Principal
from dynamo_core.errors import Unauthenticated

CONFIG = api_keys.Config(keys={"ann": hashlib.sha256(b"secret").hexdigest().upper()})


def ask(**headers):
    (spec,) = api_keys.dynamo_authenticators()
    return spec.factory(CONFIG)(HttpRequestInfo(id="1", method="POST", path="/", headers=headers, client=""))


def test_a_known_key_admits_its_user():
    assert ask(authorization="Bearer secret") == Principal(id="ann")
    assert ask(authorization="bearer  secret ") == Principal(id="ann")


def test_an_unknown_key_is_denied():
    with pytest.raises(Unauthenticated):
        ask(authorization="Bearer secre")


def test_without_a_key_it_abstains():
    assert ask() is None
    assert ask(authorization="Basic YTpi") is None

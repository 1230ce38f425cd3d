import header_gate
import pytest

from dynamo_core.contracts import HttpRequestInfo
from dynamo_core.errors import PermissionDenied


def request(headers):
    return HttpRequestInfo(id="1", method="POST", path="/v1/completions", headers=headers, client="127.0.0.1")


def test_a_request_with_the_header_passes():
    header_gate.dynamo_rate_limit(request({"x-team": "search"}), header_gate.Config())


def test_a_request_without_it_is_refused_by_name():
    with pytest.raises(PermissionDenied, match="x-project"):
        header_gate.dynamo_rate_limit(request({"x-team": "search"}), header_gate.Config(header="x-project"))

import feedback
import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient


@pytest.fixture
def file(tmp_path):
    return tmp_path / "feedback.jsonl"


@pytest.fixture
def client(file):
    (spec,) = feedback.dynamo_http_routes(feedback.Config(file=str(file)))
    with TestClient(Litestar(route_handlers=[*spec.route_handlers])) as client:
        yield client


def test_each_feedback_is_a_line(client, file):
    for score in (1, -1):
        assert client.post("/v1/feedback", json={"request_id": "abc", "score": score}).status_code == 202
    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
    assert [line["score"] for line in lines] == [1, -1]


@pytest.mark.parametrize("body", [{}, {"request_id": "a", "score": 2}, {"request_id": "a", "score": 1, "more": 1}])
def test_what_is_no_feedback_is_refused(client, file, body):
    assert client.post("/v1/feedback", json=body).status_code == 400
    assert not file.exists()


def test_the_endpoint_is_described(client):
    assert "/v1/feedback" in client.get("/schema/openapi.json").json()["paths"]

import pytest
import requests_per_minute

from dynamo_core.contracts import HttpRequestInfo, Principal
from dynamo_core.errors import RateLimited

REQUEST = HttpRequestInfo(id="1", method="POST", path="/", headers={}, client="10.0.0.1")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limiter(clock):
    return requests_per_minute.Limiter(requests_per_minute.Config(limit=3), clock)


def test_what_is_over_the_limit_is_told_when_to_come_again(limiter, clock):
    for _ in range(3):
        limiter(REQUEST, None)
    with pytest.raises(RateLimited) as refusal:
        limiter(REQUEST, None)
    assert refusal.value.retry_after == pytest.approx(20)
    clock.now += refusal.value.retry_after
    limiter(REQUEST, None)
    with pytest.raises(RateLimited):
        limiter(REQUEST, None)


def test_each_principal_has_a_limit_of_its_own(limiter):
    for user in ("ann", "bob"):
        for _ in range(3):
            limiter(REQUEST, Principal(id=user))


def test_callers_who_are_quiet_are_forgotten(limiter, clock, monkeypatch):
    monkeypatch.setattr(requests_per_minute, "KNOWN", 2)
    for user in ("ann", "bob", "eve"):
        limiter(REQUEST, Principal(id=user))
        clock.now += 60
    assert list(limiter.full_at) == ["eve"]

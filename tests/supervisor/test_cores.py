import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.supervisor.cores import split_cores


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [
        ((0, 1), 2, [(0,), (1,)]),
        (range(8), 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ((3, 5, 7), 2, [(3,), (5, 7)]),
        ((0, 1), 3, [(0,), (1,), (0,)]),
        ((), 2, [(), ()]),
        ((0, 1), 0, []),
    ],
)
def test_cores_are_split_into_neighbours(cores, workers, expected):
    assert split_cores(tuple(cores), workers) == expected


@given(st.integers(1, 64), st.integers(1, 64))
def test_every_worker_has_a_core_and_no_core_is_idle_when_there_are_enough_workers(cores, workers):
    split = split_cores(range(cores), workers)
    assert len(split) == workers
    assert all(split)
    assert {core for own in split for core in own} == set(range(cores))
    assert max(map(len, split)) - min(map(len, split)) <= 1

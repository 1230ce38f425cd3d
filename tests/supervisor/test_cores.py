import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.supervisor.cores import VISIBLE_GPUS, available_gpus, split_cores, with_gpus


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


def test_cards_are_those_that_the_environment_allows_or_else_all_of_the_machine(tmp_path):
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert available_gpus({}, tmp_path) == ("0", "2", "10")
    assert available_gpus({VISIBLE_GPUS: "GPU-8932f937, 3"}, tmp_path) == ("GPU-8932f937", "3")
    assert available_gpus({VISIBLE_GPUS: ""}, tmp_path) == ()
    assert available_gpus({}, tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        ("0 1", 2, ["0", "1"]),
        ("0 1 2 3", 2, ["0,1", "2,3"]),
        ("0 1", 4, ["0", "1", "0", "1"]),
        ("0 1", 1, [None]),
        ("0", 2, [None, None]),
        ("", 2, [None, None]),
    ],
)
def test_several_workers_share_out_several_cards(gpus, workers, expected):
    environs = with_gpus({"A": "1"}, gpus.split(), workers)
    assert [environ.get(VISIBLE_GPUS) for environ in environs] == expected
    assert all(environ["A"] == "1" for environ in environs)

from dynamo_core.supervisor.back_off import BackOff


def test_pauses_double_up_to_the_longest():
    back_off = BackOff(first=0.5, longest=30)
    assert [back_off.pause(1.0) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_healthy_life_starts_over():
    back_off = BackOff(first=0.5, longest=30, healthy=60)
    assert [back_off.pause(lived) for lived in (1, 1, 59.9, 60, 1)] == [0.5, 1, 2, 0.5, 1]

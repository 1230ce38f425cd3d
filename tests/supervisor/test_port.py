import socket

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.supervisor.port import listening_socket, reserve_port


@pytest.fixture
def reserved():
    reservation = reserve_port("127.0.0.1", 0)
    yield reservation
    reservation.close()


def test_port_0_becomes_a_real_port(reserved):
    assert reserved.port > 0
    assert reserved.url == f"http://127.0.0.1:{reserved.port}"


def test_a_port_where_somebody_listens_is_refused_in_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"Port {port} on 127.0.0.1 is in use .* --http-port"):
            reserve_port("127.0.0.1", port)


def test_a_second_run_is_refused_even_before_the_first_listens(reserved):
    with pytest.raises(StartupError, match="in use"):
        reserve_port("127.0.0.1", reserved.port)


def test_frontends_share_a_reserved_port_and_all_connections_reach_them(reserved):
    shared = [listening_socket("127.0.0.1", reserved.port, backlog=64, shared=True) for _ in range(2)]
    try:
        clients = [socket.create_connection(("127.0.0.1", reserved.port), timeout=5) for _ in range(32)]
        accepted = 0
        for sock in shared:
            while True:
                try:
                    sock.accept()[0].close()
                except BlockingIOError:
                    break
                accepted += 1
        assert accepted == 32
        for client in clients:
            client.close()
    finally:
        for sock in shared:
            sock.close()


def test_a_port_of_which_connections_linger_can_be_reserved_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # the server closes first, so that its end lingers
            assert client.recv(1) == b""
    reserve_port("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "message"), [("no-such-host.invalid", "cannot be resolved"), ("192.0.2.1", "is not one of this machine")]
)
def test_an_address_that_is_not_ours_is_refused_in_one_sentence(host, message):
    with pytest.raises(StartupError, match=message):
        reserve_port(host, 0)


def test_all_addresses_are_shown_as_one_that_a_client_can_use():
    reservation = reserve_port("0.0.0.0", 0)
    reservation.close()
    assert reservation.url == f"http://127.0.0.1:{reservation.port}"

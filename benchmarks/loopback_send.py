"""What one small ``send`` costs, which no server avoids: over few or many sockets, in one go or in a burst each 16 ms.

Over many sockets that rest between bursts, the memory of each has left the processor's caches: that is what a paced stream pays.
Prints µs CPU a send. Ends by itself after some ten seconds.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import time

__all__ = ["burst_cost", "connected"]

_BURST = 128
_EVENT = b"x" * 290
"""As long as a chunk of a chat completion with one token."""


def connected(count: int) -> list[socket.socket]:
    """Sockets whose other ends a process reads that never sleeps, so that no send has to wake it. It ends with the sockets."""
    with socket.create_server(("127.0.0.1", 0), backlog=count) as listening:
        if os.fork() == 0:
            _read_all(listening.getsockname(), count)
        return [listening.accept()[0] for _ in range(count)]


def _read_all(address: tuple[str, int], count: int) -> None:
    ends = {end.fileno(): end for end in (socket.create_connection(address) for _ in range(count))}
    ready = select.epoll()
    for number in ends:
        ready.register(number, select.EPOLLIN)
    while ends:
        for number, _ in ready.poll(0):
            if not ends[number].recv(1 << 20):
                os._exit(0)


def burst_cost(sockets: list[socket.socket], rest: float, bursts: int = 120) -> float:
    """CPU seconds a send, in bursts of 128 with ``rest`` seconds between them."""
    spent = time.process_time()
    for burst in range(bursts):
        for place in range(_BURST):
            sockets[(burst * _BURST + place) % len(sockets)].send(_EVENT)
        if rest:
            time.sleep(rest)
    return (time.process_time() - spent) / bursts / _BURST


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loopback_send", description=__doc__)
    parser.add_argument("--sockets", type=int, nargs="+", default=[1, 64, 256, 1024])
    options = parser.parse_args()
    print("µs CPU a send of 290 bytes on loopback, one process")
    for count in options.sockets:
        sockets = connected(count)
        burst_cost(sockets, 0.0, 20)
        warm, rested = burst_cost(sockets, 0.0), burst_cost(sockets, 0.016)
        print(f"{count:6} sockets: {warm * 1e6:5.1f} without rest, {rested * 1e6:5.1f} in bursts 16 ms apart")
        for each in sockets:
            each.close()
        os.wait()


if __name__ == "__main__":
    main()

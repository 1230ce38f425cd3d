"""Time of `dynamo --help`, `dynamo --version` and `dynamo config show`, beside that of an empty interpreter.

    python benchmarks/cli_start.py [--rounds 15]

The median and the best of the rounds, wall clock; the first is to stay under 300 ms.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time

import dynamo_core

MAIN = "from dynamo_core.cli import main; main()"


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("command: python benchmarks/cli_start.py --rounds", rounds)
    print(f"dynamo {dynamo_core.__version__}, Python {platform.python_version()}, {platform.platform()}")
    baseline = statistics.median(seconds("-c", "pass") for _ in range(rounds))
    print(f"{'empty interpreter':<22} median {baseline * 1e3:5.0f} ms")
    for words in (("--help",), ("--version",), ("config", "show")):
        times = [seconds("-c", MAIN, *words) for _ in range(rounds)]
        median = statistics.median(times)
        name = "dynamo " + " ".join(words)
        print(f"{name:<22} median {median * 1e3:5.0f} ms  best {min(times) * 1e3:5.0f} ms  {median / baseline:4.1f} x baseline")


if __name__ == "__main__":
    main()

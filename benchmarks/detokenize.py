"""Cost of a detokenized token, beside `tokenizers.decoders.DecodeStream` on the same ids.

    python benchmarks/detokenize.py [--model FOLDER]

Without a model folder a byte-level tokenizer is trained on the spot. Tokens of 64 streams are pushed in turn, as an engine's
steps bring them. Best of the rounds. Also: encoding beside `tokenizers`, and what loading costs.
"""

import argparse
import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import dynamo_core
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.tokenizer import load_tokenizer

ROUNDS = 7
STREAMS = 64
TEXTS = {
    "English": "The router picks the worker that holds the longest prefix of the prompt, unless its queue is too long. " * 12,
    "code": "def push(self, token_id: int) -> str:\n    if not self._open:\n        return self._texts[token_id]\n" * 12,
    "Chinese": "路由器会选择持有最长提示前缀的工作进程，除非它的队列太长。请求结束后，用量只结算一次。" * 20,
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪 🦜🪿🫏 " * 30,
}


def trained(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    sources = [path.read_text() for path in Path(dynamo_core.__file__).parent.rglob("*.py")]
    tokenizer.train_from_iterator([TEXTS["English"], TEXTS["code"], *sources], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def best(action: Callable[[], object], tokens: int) -> float:
    """Microseconds a token."""
    seconds = []
    for _ in range(ROUNDS):
        gc.collect()
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / tokens * 1e6


def resident() -> float:
    """MB of this process; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if statm.exists() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    model = parser.parse_args().model
    print("command:", "python", *sys.argv)
    print(
        f"dynamo {dynamo_core.__version__}, tokenizers {tokenizers.__version__}, Python {platform.python_version()}, "
        f"{platform.platform()}, {os.cpu_count()} CPUs"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = ModelFolder.load(model or trained(Path(scratch)))
        before, started = resident(), time.perf_counter()
        tokenizer = load_tokenizer(folder)
        took, held = time.perf_counter() - started, resident() - before
        print(
            f"{tokenizer.vocab_size} tokens, encoded by {tokenizer.backend}: loaded in {took:.1f} s, {held:.0f} MB more resident"
        )
        reference = tokenizers.Tokenizer.from_file(str(folder.tokenizer_json))

    print("\ndetokenizing, µs a token (target 0.5)")
    print(f"{'text':<10}{'tokens':>8}{'push':>8}{'push_many(8)':>14}{'DecodeStream':>14}{'ratio':>8}")
    for name, text in TEXTS.items():
        ids = tokenizer.encode(text, add_special_tokens=False)

        def push(ids: list[int] = ids) -> None:
            streams = [tokenizer.detokenizer(True, ids[:8]) for _ in range(STREAMS)]
            for token in ids:
                for stream in streams:
                    stream.push(token)

        def push_many(ids: list[int] = ids) -> None:
            streams = [tokenizer.detokenizer(True, ids[:8]) for _ in range(STREAMS)]
            for start in range(0, len(ids), 8):
                group = ids[start : start + 8]
                for stream in streams:
                    stream.push_many(group)

        def decode_stream(ids: list[int] = ids) -> None:
            streams = [decoders.DecodeStream(ids=ids[:8], skip_special_tokens=True) for _ in range(STREAMS // 8)]
            for token in ids:
                for stream in streams:
                    stream.step(reference, token)

        one, many = best(push, len(ids) * STREAMS), best(push_many, len(ids) * STREAMS)
        theirs = best(decode_stream, len(ids) * (STREAMS // 8))
        print(f"{name:<10}{len(ids):>8}{one:>8.3f}{many:>14.3f}{theirs:>14.3f}{theirs / one:>7.0f}x")

    print("\nencoding, µs a token")
    print(f"{'text':<10}{'tokens':>8}{tokenizer.backend:>12}{'tokenizers':>12}{'ratio':>8}")
    for name, text in TEXTS.items():
        long = text * 8
        count = len(tokenizer.encode(long))
        ours = best(lambda long=long: tokenizer.encode(long), count)
        theirs = best(lambda long=long: reference.encode(long), count)
        print(f"{name:<10}{count:>8}{ours:>12.3f}{theirs:>12.3f}{theirs / ours:>7.1f}x")


if __name__ == "__main__":
    main()

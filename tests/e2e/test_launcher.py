"""`dynamo run` and `dynamo chat` as a user has them: real processes, real sockets, real files."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

DYNAMO = str(Path(sys.executable).with_name("dynamo"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Background:
    """A command that runs until it is ended; its output goes to a file."""

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        self.log = folder / f"{args[0]}-{free_port()}.log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [DYNAMO, *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                env={**environ, "XDG_RUNTIME_DIR": str(folder), "DYN_FILE_KV": str(folder / "kv"), **env},
            )  # fmt: skip

    def line(self, has: str) -> str:
        """Wait for a line. `tail -f` is the event: what is written wakes it."""
        with subprocess.Popen(
            ["tail", "-n", "+1", "-F", f"--pid={self.process.pid}", str(self.log)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as tail:  # fmt: skip
            assert tail.stdout is not None
            for line in tail.stdout:
                if has in line:
                    tail.terminate()
                    return line.strip()
        raise AssertionError(f"{has!r} is not in:\n{self.log.read_text()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def begin(*args: str, **env: str) -> Background:
            background = Background(tmp_path, *args, **env)
            stack.callback(background.stop)
            return background

        yield begin


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def call(*args: str, said: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
        return subprocess.run(
            [DYNAMO, *args], input=said, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
            env={**environ, "XDG_RUNTIME_DIR": str(tmp_path), "DYN_FILE_KV": str(tmp_path / "kv"), **env},
        )  # fmt: skip

    return call


def test_stdin_is_answered_on_stdout(run, tiny_model):
    done = run("run", "in=stdin", "out=echo", str(tiny_model), said="the cat sat\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the cat sat\n", "")


def test_auto_lists_the_engines_and_says_which_it_took(run, tiny_model, tmp_path):
    (bare := tmp_path / "bare").mkdir()
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        (bare / name).write_bytes((tiny_model / name).read_bytes())
    done = run("run", str(bare), said="hello")  # no terminal: in=stdin
    assert done.returncode == 0
    assert "* echo: Answers with the prompt" in done.stderr
    assert "\n  mocker: " in done.stderr
    assert "engine echo; out=NAME takes another" in done.stderr
    assert "hello" in done.stdout


def test_a_batch_has_an_answer_a_line_in_order_and_a_summary(run, tiny_model, tmp_path):
    lines = [{"id": f"r{i}", "text": f"word{i}", "max_tokens": 3} for i in range(50)]
    lines[7] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    text = "".join(json.dumps(line) + "\n" for line in lines) + "not json\n" + json.dumps({"text": "x", "temperature": 9}) + "\n"
    (tmp_path / "b.jsonl").write_text(text)
    done = run("run", "in=batch:b.jsonl", "out=mocker", str(tiny_model), "--engine-arg", "speedup_ratio=0")
    assert done.returncode == 1
    assert "52 requests (2 failed)" in done.stderr
    assert "tokens/s" in done.stderr
    answers = [json.loads(line) for line in (tmp_path / "b.out.jsonl").read_text().splitlines()]
    assert [answer.get("id") for answer in answers[:50]] == [line.get("id") for line in lines]
    assert answers[0]["tokens_out"] == 3
    assert answers[0]["elapsed_ms"] >= answers[0]["ttft_ms"] > 0
    assert answers[7]["finish_reason"] == "length"
    assert "no JSON object" in answers[50]["error"]
    assert "temperature" in answers[51]["error"]


def test_the_request_template_fills_in_what_a_request_leaves_out(run, tiny_model, tmp_path):
    (tmp_path / "t.json").write_text('{"max_completion_tokens": 2, "temperature": 0.5}')
    (tmp_path / "b.jsonl").write_text('{"text": "a b c d e f"}\n{"text": "a b c d e f", "max_tokens": 1}\n')
    flags = ("--request-template", "t.json", "--output", "o.jsonl", "--engine-arg", "speedup_ratio=0")
    assert run("run", "in=batch:b.jsonl", "out=mocker", str(tiny_model), *flags).returncode == 0
    assert [json.loads(line)["tokens_out"] for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [2, 1]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["in=stdin", "out=echo"], "No model was named"),
        (["in=stdin", "out=ecko", "MODEL"], "engine 'ecko' is unknown: did you mean 'echo'?"),
        (["in=batch:none.jsonl", "out=echo", "MODEL"], "The batch file none.jsonl cannot be read (no such file or directory)"),
        (["in=stdin", "out=echo", "MODEL", "--router-temperature", "1"], "need the KV router: add --router-mode kv."),
        (["in=http", "out=echo", "MODEL", "--tls-key-path", "x"], "--tls-key-path was given without --tls-cert-path"),
        (["in=http", "out=echo", "MODEL", "--tls-key-path", "x", "--tls-cert-path", "y"], "--tls-cert-path y cannot be read"),
        (["in=stdin", "out=echo", "MODEL", "--request-template", "none.json"], "--request-template none.json cannot be read"),
        (["in=stdin", "out=dyn", "--discovery-backend", "redis"], "redis"),
    ],
)
def test_what_cannot_run_is_one_sentence(run, tiny_model, args, sentence):
    done = run("run", *[str(tiny_model) if arg == "MODEL" else arg for arg in args])
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sentence in done.stderr


def test_text_is_a_chat_with_the_model_here(run, tiny_model):
    done = run("run", "in=text", "out=echo", str(tiny_model), said="the cat\n/model\n/quit\nnever\n")
    assert done.returncode == 0, done.stderr
    assert "the cat" in done.stdout
    assert "never" not in done.stdout
    assert "tokens/s" in done.stderr
    assert "* tiny" in done.stderr


def test_http_serves_in_one_process_and_chat_talks_to_it(run, start, tiny_model):
    server = start("run", "in=http", "out=echo", str(tiny_model), "--http-port", "0", "--model-name", "me", "--router-mode", "kv")
    url = server.line("ready: ").split()[1].rstrip(",").removesuffix("/v1")
    with contextlib.suppress(FileNotFoundError):  # where the system tells: no child, no other process
        assert Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text() == ""
    done = run("chat", "--url", url, "--system", "Be good.", said="the cat\n/set max_tokens=1\nagain\n/set temperature=9\nbad\n")
    assert done.returncode == 0, done.stderr
    assert "the cat" in done.stdout
    assert "1 tokens" in done.stderr
    assert "400: `temperature`" in done.stderr
    missing = run("chat", "--url", url, "--model-name", "you")
    assert (missing.returncode, missing.stderr) == (2, f"The server at {url} has no model 'you': it has me.\n")
    assert server.stop() == 0
    gone = run("chat", "--url", url)
    assert gone.returncode == 2
    assert "no answer from" in gone.stderr


def test_https_with_a_certificate(start, tiny_model, tmp_path):
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1",
               "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    server = start(
        "run", "in=http", "out=echo", str(tiny_model), "--http-port", "0",
        "--tls-cert-path", "cert.pem", "--tls-key-path", "key.pem",
    )  # fmt: skip
    url = server.line("ready: https://").split()[1].rstrip(",")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    body = {"model": "tiny", "prompt": "the cat", "stream": True}
    request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        text = answer.read()
    assert text.endswith(b"data: [DONE]\n\n")
    assert server.stop() == 0


def test_a_worker_on_an_endpoint_of_its_own_serves_what_out_dyn_asks(run, start, tiny_model):
    worker = start("run", "in=dyn://far.side.answer", "out=echo", str(tiny_model), "--model-name", "me")
    worker.line("ready")
    done = run("run", "in=stdin", "out=dyn", "--namespace", "far", said="the cat")
    assert (done.returncode, done.stdout) == (0, "the cat\n"), done.stderr
    frontend = start("run", "in=http", "out=dyn", "--namespace", "far", "--http-port", "0")
    url = frontend.line("listening on ").split()[-1]
    frontend.line("ready")
    frontend.line("serves model me")
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", "/v1/models")
    assert json.loads(connection.getresponse().read())["data"][0]["id"] == "me"
    connection.close()
    assert frontend.stop() == 0
    assert worker.stop() == 0


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.end, self._theirs = os.openpty()  # kept open, or reading fails until the command has opened it
        modes = termios.tcgetattr(self._theirs)
        modes[3] |= termios.NOFLSH  # else the kernel drops what the command prints between Ctrl-C's signal and its flush
        termios.tcsetattr(self._theirs, termios.TCSANOW, modes)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
        shell = 'exec 0<>"$1" 1>&0 2>&0; shift; exec "$@"'  # opening a terminal makes it the session's own: Ctrl-C arrives
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", shell, "sh", os.ttyname(self._theirs), DYNAMO, *args], start_new_session=True, cwd=folder,
            env={**environ, "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder / "state"), "TERM": "dumb"},
        )  # fmt: skip
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)
        os.close(self._theirs)

    def until(self, text: str) -> None:
        while text not in self.seen:
            data = os.read(self.end, 4096)
            assert data, self.seen
            self.seen += data.decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C, again after 2 s of silence: one that meets CPython between reading a key and waiting for the next is lost."""
        while text not in self.seen:
            self.type("\x03")
            while text not in self.seen and select.select([self.end], [], [], 2)[0]:
                self.seen += os.read(self.end, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]


def test_a_chat_on_a_terminal_survives_ctrl_c_and_remembers_its_lines(tiny_model, tmp_path):
    with Terminal(tmp_path, "run", "out=mocker", str(tiny_model), "--engine-arg", "speedup_ratio=0.05") as chat:
        chat.until("/help lists the commands")
        chat.until("> ")
        chat.type("tell me a lot\n")
        chat.until("tell me a lot")
        chat.until("\n")
        chat.until(" ")  # the first words
        chat.type("\x03")
        chat.until("broken off")
        chat.until("> ")
        chat.type("half a line")
        chat.until("half a line")
        chat.interrupt_until("> ")
        chat.type("/set max_tokens=1\n/retry\n")
        chat.until("1 tokens")
        chat.until("> ")
        chat.type("\x04")
        assert chat.process.wait(30) == 0
    history = tmp_path / "state" / "dynamo" / "chat_history"
    assert "tell me a lot" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0

"""What serve refuses before it starts anything."""

import json
import os
import socket

import pytest


def serve(refused, model, *flags, **environ):
    return refused("serve", "--engine", "echo", "--model", str(model), "--http-port", "0", *flags, **environ)


def test_an_unknown_engine_is_refused_with_the_nearest_name(refused, model):
    assert serve(refused, model, "--engine", "ecko") == "engine 'ecko' is unknown: did you mean 'echo'?"


def test_an_unknown_plugin_is_refused_with_the_nearest_name(refused, model):
    assert "did you mean 'kv-router'?" in serve(refused, model, "--plugin", "kv-routr")


def test_no_engine_is_refused(refused, model):
    assert "add --engine NAME" in refused("serve", "--model", str(model))


def test_no_model_is_refused(refused):
    assert "add --model FOLDER" in refused("serve", "--engine", "echo")


def test_a_model_folder_that_is_missing_is_refused(refused, folder):
    assert f"{str(folder / 'nope')!r} does not exist" in serve(refused, folder / "nope")


def test_a_model_folder_without_a_tokenizer_is_refused(refused, model):
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in serve(refused, model)


def test_a_taken_port_is_refused(refused, model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = serve(refused, model, "--http-port", str(port))
    assert (
        sentence
        == f"Port {port} on 127.0.0.1 is in use by another program: choose another with --http-port, or 0 for any free one."
    )


def test_a_misspelt_key_in_the_file_is_refused_with_the_nearest_key(refused, model, folder):
    (folder / "dynamo.toml").write_text("http_prot = 1\n")
    sentence = serve(refused, model)
    assert "dynamo.toml" in sentence
    assert "http_port" in sentence


def test_a_misspelt_level_is_refused(refused, model):
    assert "'lowd'" in serve(refused, model, DYN_LOG="lowd")


@pytest.mark.parametrize(
    ("flag", "name"), [("--discovery-backend", "mem"), ("--request-plane", "inproc"), ("--event-plane", "inproc")]
)
def test_providers_that_reach_no_further_than_one_process_are_refused(refused, model, flag, name):
    assert f"use {flag} " in serve(refused, model, flag, name)


def test_an_engine_whose_extra_is_missing_is_refused_with_the_pip_line(refused, model, folder):
    """A distribution of its own, on the path only: what a user has who installed a plugin without its extra."""
    (folder / "needy.py").write_text(
        "from dynamo_core import hookimpl\nfrom dynamo_core.specs import EngineSpec\n"
        "@hookimpl\ndef dynamo_engines():\n"
        "    return [EngineSpec(name='needy', factory=None, requires={'no_such_module': 'pip install dynamo-needy[needy]'})]\n"
    )
    info = folder / "needy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: needy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dynamo.plugins]\nneedy = needy\n")
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    assert "pip install dynamo-needy[needy]" in serve(refused, model, "--engine", "needy", PYTHONPATH=path)


def test_nothing_is_left_behind(refused, model, folder):
    serve(refused, model, "--engine", "ecko")
    assert not (folder / "run").exists()
    assert json.loads((model / "config.json").read_text()) == {}

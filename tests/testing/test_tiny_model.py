"""The tiny model's folder, without an engine."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tokenizers import Tokenizer

from dynamo_core.testing.tiny_model import make_tiny_model


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two = make_tiny_model(tmp_path / "one"), make_tiny_model(tmp_path / "two")
    names = {path.name for path in one.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_weights_are_those_that_the_configuration_calls_for(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, layers=2, context_length=512)
    config = json.loads((folder / "config.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert len(data) == 8 + size + max(entry["data_offsets"][1] for entry in header.values())
    assert header["lm_head.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert {name.split(".")[2] for name in header if ".layers." in name} == {"0", "1"}
    assert config["head_dim"] >= 32
    assert config["tie_word_embeddings"] is False
    assert config["max_position_embeddings"] == 512


def test_the_tokenizer_gives_back_what_it_was_given_and_knows_the_roles(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, weights=False)
    assert not (folder / "model.safetensors").exists()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "The river ran past — déjà vu, 漢字 🙂\n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.token_to_id("<s>")
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert all(role in template for role in ("system", "user", "assistant"))
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.token_to_id("</s>") in ends

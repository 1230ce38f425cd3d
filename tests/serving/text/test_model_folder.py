from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.serving.model_folder import ModelFolder

TOKENIZER = {
    "added_tokens": [{"id": 7, "content": "<end>", "special": True}],
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return tmp_path


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_folder_needs_only_a_tokenizer(folder: Path) -> None:
    model = ModelFolder.load(folder)
    assert model.tokenizer_json == folder / "tokenizer.json"
    assert (model.context_length, model.eos_token_ids, model.bos_token, model.eos_token) == (None, (), None, None)
    assert model.chat_templates == {}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 8192}, "vision_config": {}}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_the_context_length_is_found_where_models_keep_it(folder: Path, config: dict[str, object], length: int | None) -> None:
    write(folder, "config.json", config)
    assert ModelFolder.load(folder).context_length == length


def test_ids_that_end_a_generation_come_from_all_files(folder: Path) -> None:
    write(folder, "generation_config.json", {"eos_token_id": [5, 6]})
    write(folder, "config.json", {"eos_token_id": 6, "text_config": {"eos_token_id": 8}})
    write(folder, "tokenizer_config.json", {"eos_token": {"content": "<end>"}})
    assert ModelFolder.load(folder).eos_token_ids == (5, 6, 8, 7)


def test_the_id_of_the_end_token_may_stand_in_the_tokenizer_config(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "<e>", "added_tokens_decoder": {"9": {"content": "<e>"}}})
    assert ModelFolder.load(folder).eos_token_ids == (9,)


def test_special_tokens_are_known_by_role(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"bos_token": "<old>", "unk_token": {"content": "<unk>"}})
    write(
        folder,
        "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": None, "add_bos_token": True, "extra_special_tokens": {"image_token": "<image>"}},
    )
    model = ModelFolder.load(folder)
    assert model.special_tokens == {"bos_token": "<s>", "unk_token": "<unk>", "image_token": "<image>"}
    assert model.bos_token == "<s>"


def test_a_template_file_wins_over_the_tokenizer_config(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "inline"})
    assert ModelFolder.load(folder).chat_templates == {"default": "inline"}
    write(folder, "chat_template.jinja", "file")
    write(folder, "additional_chat_templates/tool_use.jinja", "tools")
    assert ModelFolder.load(folder).chat_templates == {"default": "file", "tool_use": "tools"}


@pytest.mark.parametrize(
    "templates",
    [{"default": "a", "tool_use": "b"}, [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]],
)
def test_named_templates_come_as_a_table_or_a_list(folder: Path, templates: object) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": templates})
    assert ModelFolder.load(folder).chat_templates == {"default": "a", "tool_use": "b"}


def test_what_is_wrong_with_a_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"'org/model' does not exist; .*not downloaded by name"):
        ModelFolder.load("org/model")
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"is a file; give the folder"):
        ModelFolder.load(tmp_path / "file")
    with pytest.raises(StartupError, match=r"has no tokenizer\.json; save"):
        ModelFolder.load(tmp_path)
    write(tmp_path, "tokenizer.json", TOKENIZER)
    for broken in ("{", "[]", "\x80"):
        (tmp_path / "config.json").write_bytes(broken.encode("latin-1"))
        with pytest.raises(StartupError, match=r"config\.json' is not a JSON object: .*; fetch"):
            ModelFolder.load(tmp_path)

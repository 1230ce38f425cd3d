from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from dynamo_core.errors import InvalidRequest, StartupError
from dynamo_core.serving import tokenizer as module
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.tokenizer import Tokenizer, load_tokenizer

ModelPath = Callable[[str], Path]


@pytest.fixture(params=[True, False], ids=["compiled", "plain"], autouse=True)
def words_are_remembered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part in C may be there or not; where it was not built, both are the same."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "dynamo_core.serving._word_cache", None)


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(ModelFolder.load(folder))


def edited(source: Path, target: Path, **changes: object) -> Path:
    made = json.loads((source / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps({**made, **changes}))
    return target


@pytest.mark.parametrize("name", ["byte_level", "byte_level_split", "gemma"])
def test_fastokens_encodes_where_it_gives_the_same_ids(model_path: ModelPath, name: str) -> None:
    pytest.importorskip("fastokens")
    assert load(model_path(name)).backend == "fastokens"


@pytest.mark.parametrize("name", ["unigram", "word_piece", "words"])
def test_tokenizers_encodes_what_fastokens_does_not_know(model_path: ModelPath, name: str) -> None:
    tokenizer = load(model_path(name))
    reference = tokenizers.Tokenizer.from_file(str(model_path(name) / "tokenizer.json"))
    assert tokenizer.encode("The quick brown fox") == reference.encode("The quick brown fox").ids


def test_added_tokens_that_are_to_stand_alone_are_left_to_tokenizers(
    model_path: ModelPath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tokenizers.Tokenizer.from_file(str(model_path("byte_level") / "tokenizer.json"))
    made.add_tokens([tokenizers.AddedToken("word", single_word=True, normalized=False)])
    made.save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.INFO):
        tokenizer = load(tmp_path)
    assert tokenizer.backend == "tokenizers"
    for text in ("wordŉ☃", "a word ŉ☃", "words", "sword", "word"):
        assert tokenizer.encode(text) == made.encode(text).ids
    assert "'word', which is to stand alone" in caplog.text or "not installed" in caplog.text


def test_a_fastokens_that_gives_other_ids_is_not_used(
    model_path: ModelPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fastokens = pytest.importorskip("fastokens")
    from_file = fastokens.Tokenizer.from_file

    class Careless:
        from_file = classmethod(lambda cls, path: cls(from_file(path)))

        def __init__(self, tokenizer: object) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> object:
            return getattr(self._tokenizer, name)

        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> Any:
            texts = [text.replace("\t", " ") for text in texts]
            return self._tokenizer.encode_batch_flat(texts, add_special_tokens=add_special_tokens)  # type: ignore[attr-defined]

    monkeypatch.setattr(fastokens, "Tokenizer", Careless)
    with caplog.at_level(logging.INFO):
        tokenizer = load(model_path("byte_level"))
    assert tokenizer.backend == "tokenizers"
    assert "other ids for" in caplog.text
    assert tokenizer.decode(tokenizer.encode("a\tb")) == "a\tb"


def test_texts_that_are_encoded_while_the_encoder_changes_have_the_same_ids(model_path: ModelPath) -> None:
    pytest.importorskip("fastokens")
    tokenizer = load_tokenizer(ModelFolder.load(model_path("byte_level_split")), hastened=False)
    assert (tokenizer.backend, tokenizer.hastens) == ("tokenizers", True)
    texts = ["the quick brown fox\n" * 20, "naïve café 你好 😀", "def f(x):\n\treturn x ** 2"]
    expected = [tokenizer.encode(text) for text in texts]
    changed = threading.Event()
    wrong: list[object] = []

    def encode(one: bool) -> None:
        rounds = 0
        while rounds < 20:
            rounds += changed.is_set()
            ids = [tokenizer.encode(text) for text in texts] if one else [ids.tolist() for ids in tokenizer.pack_all(texts)]
            names = [tokenizer.token_id("<s>"), tokenizer.decode(ids[1])]
            if ids != expected or names != [1, texts[1]]:
                wrong.append((ids, names))

    threads = [threading.Thread(target=encode, args=(one,)) for one in (True, False)]
    for thread in threads:
        thread.start()
    tokenizer.hasten()
    changed.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (tokenizer.backend, tokenizer.hastens) == ("fastokens", False)
    one = tokenizer._one
    tokenizer.hasten()
    assert tokenizer._one is one


@pytest.mark.parametrize("in_use", [True, False])
def test_the_slower_encoder_is_emptied_unless_somebody_still_has_it(
    model_path: ModelPath, monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    pytest.importorskip("fastokens")
    read, empty = module._load_reference, module._empty
    users: list[Any] = []
    emptied: list[int] = []

    def load_reference(path: Path) -> Any:
        reference = read(path)
        if in_use:
            users.append(reference.encode)
        return reference

    def record(reference: Any) -> None:
        empty(reference)
        emptied.append(reference.get_vocab_size(with_added_tokens=False))

    monkeypatch.setattr(module, "_load_reference", load_reference)
    monkeypatch.setattr(module, "_empty", record)
    monkeypatch.setattr(module, "_PATIENCE", 3)
    tokenizer = load(model_path("byte_level"))
    assert tokenizer.backend == "fastokens"
    assert emptied == ([] if in_use else [0])
    assert all(user("the fox").ids == tokenizer.encode("the fox") for user in users)


def test_special_tokens_are_added_or_not(model_path: ModelPath) -> None:
    tokenizer = load(model_path("byte_level_split"))
    assert tokenizer.encode("the")[1:] == tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.encode("the")[0] == tokenizer.token_id("<s>")
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    assert tokenizer.decode(tokenizer.encode("the"), skip_special_tokens=False) == "<s>the"


def test_what_a_file_says_of_truncation_and_padding_is_not_followed(model_path: ModelPath, tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<unk>",
    }  # fmt: skip
    for name in ("byte_level", "word_piece"):
        folder = edited(model_path(name), tmp_path, truncation=truncation, padding=padding)
        text = "the quick brown fox jumps over the lazy dog"
        assert load(folder).encode(text) == load(model_path(name)).encode(text)


def test_a_token_is_shown_with_its_space_and_its_bytes(model_path: ModelPath) -> None:
    for name in ("byte_level", "llama", "gemma"):
        tokenizer = load(model_path(name))
        token = tokenizer.encode("a the", add_special_tokens=False)[-1]
        assert tokenizer.token_text(token) == " the"
        assert tokenizer.token_bytes(token) == b" the"
    llama = load(model_path("llama"))
    byte = llama.token_id("<0xE4>")
    assert byte is not None
    assert (llama.token_text(byte), llama.token_bytes(byte)) == ("�", b"\xe4")
    end = llama.token_id("</s>")
    assert end is not None
    assert llama.token_text(end) == "</s>"


def test_half_a_surrogate_pair_is_the_clients_error(model_path: ModelPath) -> None:
    for name in ("byte_level", "word_piece"):
        with pytest.raises(InvalidRequest, match="surrogate"):
            load(model_path(name)).encode("a\ud83d")


def test_ids_with_gaps_between_them_are_found(model_path: ModelPath, tmp_path: Path) -> None:
    made = json.loads((model_path("gemma") / "tokenizer.json").read_text())
    made["model"]["vocab"]["the_last"] = 100_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    tokenizer = load(tmp_path)
    assert tokenizer.decode([100_000]) == "the_last"
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(100_000) + detokenizer.push(99_999) + detokenizer.push(200_000) == "the_last"


@pytest.mark.parametrize(
    "content", ["{}", '{"model": {"type": "Nonsense"}}', "not JSON", '{"added_tokens": 3}', '{"decoder": []}']
)
def test_a_file_that_is_no_tokenizer_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StartupError, match=r"tokenizer\.json' is not a tokenizer: .*; fetch") as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message

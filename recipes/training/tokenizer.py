"""CLIP's own byte-pair vocabulary as a CLIPTokenizer, from the merges file of open_clip (MIT)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from transformers import CLIPTokenizer

MERGES_FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGE_COUNT = 49_152 - 256 - 2  # as in OpenAI's SimpleTokenizer: bytes twice, two special tokens
MAX_LENGTH = 77


def byte_symbols() -> list[str]:
    """The 256 printable symbols for bytes, in the vocabulary order of CLIP and GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def read_bpe(raw: Path) -> tuple[dict[str, int], list[str]]:
    """Vocabulary (49,408 entries) and merges ("left right") of CLIP."""
    with gzip.open(raw / MERGES_FILE, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : MERGE_COUNT + 1]
    symbols = byte_symbols()
    words = symbols + [s + "</w>" for s in symbols]
    words += ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {w: i for i, w in enumerate(words)}, merges


def write_tokenizer(raw: Path, out: Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json, with SD 1.x's padding."""
    vocab, merges = read_bpe(raw)
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(path: Path) -> CLIPTokenizer:
    """The tokenizer of a directory from `write_tokenizer`, without network access."""
    return CLIPTokenizer.from_pretrained(path, local_files_only=True)

"""Placeholders of textual inversions that have several vectors, as diffusers' pipelines read them.

An inversion of n vectors adds the words ``<cat>``, ``<cat>_1`` ... ``<cat>_(n-1)``. A pipeline
replaces ``<cat>`` in a prompt by all of them before it tokenizes (``maybe_convert_prompt`` of
``diffusers.loaders.textual_inversion``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, permutations
from typing import Any

from dori_fast.errors import UsageError

# all orders of five placeholders in one prompt
_ORDERS = 120


def with_all_vectors(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts with each placeholder of several vectors replaced by the words of all of them.

    Raises:
        UsageError: a prompt whose placeholders overlap. diffusers replaces them in the order of a
            set, which differs between processes.
    """
    words = vectors_by_placeholder(tokenizer)
    if not words or not prompts:
        return list(prompts)
    # tokens are in small letters, so a placeholder with capitals stays one vector, as in diffusers
    return [
        _replaced(prompt, sorted(words.keys() & set(tokenizer.tokenize(prompt))), words)
        for prompt in prompts
    ]


def vectors_by_placeholder(tokenizer: Any) -> dict[str, str]:
    """The words of all vectors, by placeholder, of the inversions with more than one."""
    added = tokenizer.added_tokens_encoder
    found = {}
    for name in added:
        vectors = [name]
        while f"{name}_{len(vectors)}" in added:
            vectors.append(f"{name}_{len(vectors)}")
        if len(vectors) > 1:
            found[name] = " ".join(vectors)
    return found


def _replaced(prompt: str, names: list[str], words: dict[str, str]) -> str:
    orders = islice(permutations(names), _ORDERS)
    readings = {_in_order(prompt, order, words) for order in orders}
    if len(readings) > 1:
        raise UsageError(
            f"encode: the placeholders {' and '.join(names)} overlap, so diffusers has several"
            f" readings of {prompt!r}; rename one of the textual inversions"
        )
    return readings.pop()


def _in_order(prompt: str, names: Iterable[str], words: dict[str, str]) -> str:
    for name in names:
        prompt = prompt.replace(name, words[name])
    return prompt

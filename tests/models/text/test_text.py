"""Tokenizing and encoding against the tokenizer's and text encoder's own calls."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.text.conditions import first_positions, pad_rows
from dori_fast.models.text.tokens import PromptTokens
from tests.tiny_model import _text_encoder, byte_tokenizer

PROMPTS = [
    "a cup of coffee",
    "",
    "the cat " * 60,  # longer than the context
    "a cup of coffee",
    "naïve 猫 👩‍🚀 \x00 \u202e \x1b[2J",
    "x" * 75,
    "x" * 76,
]


@pytest.fixture(scope="module")
def model(tiny_directory):
    return df.load(tiny_directory, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def tokens():
    tokenizer = byte_tokenizer()
    return PromptTokens(tokenizer, _text_encoder(len(tokenizer)))


def test_token_ids_are_the_tokenizers_own(tokens):
    tokenizer = byte_tokenizer()
    rows = tokens.rows(PROMPTS)
    own = tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    assert torch.equal(rows.ids[rows.index], own["input_ids"])


def test_equal_token_rows_are_encoded_once_and_lengths_are_kept(tokens):
    rows = tokens.rows(PROMPTS)
    assert rows.index.tolist() == [0, 1, 2, 0, 3, 4, 5]
    assert rows.ids.shape == (6, 77)
    assert rows.n_tokens[1] == 2 and rows.n_tokens[5] == 77 and rows.n_tokens[6] == 78


def test_two_long_prompts_that_differ_after_the_context_are_one_row(tokens):
    rows = tokens.rows(["z" * 200 + "a", "z" * 300 + "b"])
    assert rows.ids.shape[0] == 1 and rows.n_tokens.tolist() == [203, 303]


def test_embeddings_are_the_text_encoders_own(model):
    condition = model.encode(PROMPTS)
    ids = model.tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        own = model.text_encoder(ids)[0]
    torch.testing.assert_close(condition.embeddings, own, rtol=1e-5, atol=1e-6)
    assert condition.truncated.tolist() == [False, False, True, False, False, False, True]


def test_an_embedding_does_not_depend_on_its_neighbours(model):
    alone = [model.encode([prompt]).embeddings[0] for prompt in PROMPTS]
    together = model.encode(PROMPTS[::-1]).embeddings.flip(0)
    assert torch.equal(torch.stack(alone), together)


def test_no_prompts(model):
    condition = model.encode([])
    assert len(condition) == 0 and condition.embeddings.shape == (0, 77, 32)


def test_a_slice_and_the_distinct_rows(model):
    condition = model.encode(PROMPTS)
    part = condition[2:5]
    assert torch.equal(part.embeddings, condition.embeddings[2:5])
    distinct = condition.distinct()
    assert torch.equal(distinct.embeddings[condition.index], condition.embeddings)
    assert torch.equal(distinct.n_tokens[condition.index], condition.n_tokens)


def test_what_is_not_text_is_refused_with_its_place(model):
    with pytest.raises(UsageError, match="prompt 1 must be a str, got NoneType"):
        model.encode(["a", None])


def test_helpers():
    assert first_positions(torch.tensor([1, 0, 1, 2, 0]), 3).tolist() == [1, 0, 3]
    assert pad_rows(torch.tensor([3, 4]), 4).tolist() == [3, 4, 4, 4]

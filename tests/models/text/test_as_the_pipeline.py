"""Embeddings against the pipeline's own ``encode_prompt``, in memory and from its directory."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.prefixed import PrefixedPrompts
from dori_fast.models.text.placeholders import with_all_vectors
from tests.models.text.pipelines import invert, sd, sdxl
from tests.tiny_model import byte_tokenizer

PROMPTS = [
    "a photo of <cat> on a mat",
    "",
    "<cat>",
    "<cat> and <cat>, <CAT> and zebra",
    "<catfish> by sks with <cat>_1",
    "<cat> " * 30 + "zebra",  # longer than the context
    "naïve 猫 👩‍🚀 \x00 \u202e !",
    "x" * 75,
    "the end <|endoftext|>",
    "a Tabby and a tabby",  # diffusers finds no placeholder with capitals
]


def same(model, pipe):
    """Compare every prompt and the empty one with the pipeline's embeddings."""
    two = hasattr(pipe, "text_encoder_2")
    own = pipe.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, **_guided)
    found, empty = model.encode(PROMPTS), model.unconditional
    pairs = [(found.embeddings, own[0]), (empty.embeddings, own[1][:1])]
    if two:
        pairs += [(found.pooled[found.index], own[2]), (empty.pooled, own[3][:1])]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=2e-6)
    tokenizers = [pipe.tokenizer, *([pipe.tokenizer_2] if two else [])]
    converted = [pipe.maybe_convert_prompt(PROMPTS, t) for t in tokenizers]
    lengths = torch.tensor(
        [
            [len(ids) for ids in t(c)["input_ids"]]
            for t, c in zip(tokenizers, converted, strict=True)
        ]
    )
    assert torch.equal(found.n_tokens, lengths.amax(0))
    assert torch.equal(found.truncated, (lengths > own[0].shape[1]).any(0))


_guided = {"do_classifier_free_guidance": True}


def both(pipe, path):
    """The model in memory, and from the directory that the pipeline saves."""
    yield df.load(pipe, batch_size=4)
    pipe.save_pretrained(path)
    yield df.load(path, device="cpu", batch_size=4)


def test_textual_inversions_and_added_words_of_sd_are_encoded_as_by_its_pipeline(tmp_path):
    pipe = sd()
    invert(pipe, "<cat>", 3)
    invert(pipe, "<catfish>", 1)
    invert(pipe, "sks", 2)
    invert(pipe, "Tabby", 2)
    pipe.tokenizer.add_tokens(["zebra"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    for model in both(pipe, tmp_path):
        same(model, pipe)
        assert model.encode(["<cat>"]).n_tokens.item() == 5


@pytest.mark.parametrize("encoders", [("", "_2"), ("",), ("_2",)])
def test_textual_inversions_of_either_encoder_of_sdxl_are_encoded_as_by_its_pipeline(
    encoders, tmp_path
):
    pipe = sdxl()
    for which in encoders:
        invert(pipe, "<cat>", 3, which)
        invert(pipe, "sks", 2, which)
    for model in both(pipe, tmp_path):
        same(model, pipe)


def test_sdxl_without_zeros_for_the_empty_prompt_encodes_it(tmp_path):
    pipe = sdxl(force_zeros_for_empty_prompt=False)
    for model in both(pipe, tmp_path):
        same(model, pipe)
        assert model.unconditional.embeddings.abs().sum() > 0


@pytest.mark.parametrize("pad", [{}, {"pad_token": "!"}])
def test_an_attention_mask_is_the_tokenizers_own_even_where_the_padding_is_the_end_mark(pad):
    pipe = sd(tokenizer=byte_tokenizer(**pad))
    pipe.text_encoder.config.use_attention_mask = True
    model = df.load(pipe, batch_size=4)
    same(model, pipe)
    ordinary = ["a cup", "", "x" * 80]
    prefixed = PrefixedPrompts(model, ordinary, 2)
    tokens = torch.tensor([[65, 66], [67, 68], [69, 70]])
    embeddings, _ = prefixed.encode(torch.arange(3), tokens)
    ids = prefixed.ids(tokens)
    mask = torch.tensor([[1] * n + [0] * (77 - n) for n in (4 + 4, 4, 77)])
    with torch.no_grad():
        own = model.text_encoder(ids, attention_mask=mask)[0]
    torch.testing.assert_close(embeddings.detach(), own, rtol=1e-5, atol=2e-6)


def test_a_text_encoder_in_training_mode_is_evaluated():
    pipe = sd()
    own = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    for module in pipe.text_encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    model = df.load(pipe, batch_size=4)
    pipe.text_encoder.train().requires_grad_(True)
    with torch.no_grad():
        assert not torch.allclose(pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0], own)
    found = model.encode(PROMPTS).embeddings
    assert pipe.text_encoder.training and not found.requires_grad
    torch.testing.assert_close(found, own.detach(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("length", [8, 77, 128, None])
def test_the_context_is_the_tokenizers_but_never_longer_than_the_encoders(length):
    pipe = sd()
    own = df.load(pipe).encode(PROMPTS).embeddings
    pipe.tokenizer.model_max_length = int(1e30) if length is None else length
    found = df.load(pipe).encode(PROMPTS)
    assert found.embeddings.shape[1] == min(length or 77, 77)
    if length == 8:
        theirs = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        torch.testing.assert_close(found.embeddings, theirs.detach(), rtol=1e-5, atol=2e-6)
    else:
        assert torch.equal(found.embeddings, own)


def test_scores_are_those_of_all_vectors():
    pipe = sd()
    invert(pipe, "<cat>", 3)
    model, wen = df.load(pipe, batch_size=4), df.detect.Wen(seeds=2)
    theirs = pipe.encode_prompt(PROMPTS[0], "cpu", 1, False)[0].detach()
    with torch.no_grad():
        true = wen.per_seed(model, model.condition(theirs)).mean()
    torch.testing.assert_close(wen.score(model, PROMPTS[:1])[0], true, rtol=1e-4, atol=1e-6)


def test_equal_ids_are_one_row_and_another_inversion_changes_them():
    pipe = sd()
    invert(pipe, "<cat>", 2)
    model = df.load(pipe)
    one, both, second = model.token_ids(["a <cat>", "a <cat> <cat>_1", "a <cat>_1"])
    # the pipeline replaces a first vector that was typed, too, so the three differ
    assert (len(one), len(second)) == (5, 4) and len({*map(tuple, (one, both, second))}) == 3
    assert model.encode(["a <cat>", "A  <cat>"]).unique.shape[0] == 1


def test_conversion_is_diffusers_own():
    pipe = sd()
    for word, vectors in (("<cat>", 3), ("sks", 2), ("<dog>", 1), ("cat", 2), ("Tabby", 2)):
        invert(pipe, word, vectors)
    prompts = [p for p in PROMPTS if "<cat>" not in p] + ["<dog> sks,sks", "cat <dog>", "SKS"]
    own = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, pipe.tokenizer)
    assert with_all_vectors(pipe.tokenizer, prompts) == own


def test_placeholders_that_overlap_are_refused_where_diffusers_has_several_readings():
    pipe = sd()
    invert(pipe, "sks", 2)
    invert(pipe, "sksdog", 2)
    model = df.load(pipe)
    for prompt in ("sks", "a sksdog"):
        own = pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach()
        found = model.encode([prompt]).embeddings
        torch.testing.assert_close(found, own, rtol=1e-5, atol=2e-6)
    with pytest.raises(UsageError, match="sks and sksdog overlap"):
        model.encode(["a", "sks and sksdog"])


def test_an_adversary_types_words_of_the_vocabulary_but_no_vector_alone():
    pipe = sd()
    invert(pipe, "<cat>", 2)
    pipe.tokenizer.add_tokens(["zebra"])
    # a matrix with more rows than there are words, for speed
    pipe.text_encoder.resize_token_embeddings(528)
    model = df.load(pipe)
    allowed = PrefixedPrompts(model, ["a <cat>"], 2).allowed
    number = model.tokenizer.convert_tokens_to_ids
    assert len(allowed) == 528 and not allowed[len(model.tokenizer) :].any()
    assert allowed[number("zebra")] and allowed[number("<cat>_1")] and allowed[number("the</w>")]
    assert not allowed[number("<cat>")] and not allowed[number("<|endoftext|>")]


def test_hashes_differ_by_one_vector_one_word_and_one_setting_but_not_by_use():
    torch.manual_seed(1)
    pipe = sd()
    invert(pipe, "<cat>", 2)
    first = df.load(pipe).config()["files"]
    pipe.encode_prompt("a <cat>", "cpu", 1, False)
    assert df.load(pipe).config()["files"] == first
    changes = {
        "text_encoder": lambda: pipe.text_encoder.get_input_embeddings().weight.data[-1].add_(1),
        "tokenizer/config": lambda: setattr(pipe.tokenizer, "pad_token", "!"),
        "text_encoder/config": lambda: setattr(pipe.text_encoder.config, "hidden_act", "relu"),
    }
    for name, change in changes.items():
        change()
        again = df.load(pipe).config()["files"]
        assert {key for key in again if again[key] != first[key]} == {name}
        first = again

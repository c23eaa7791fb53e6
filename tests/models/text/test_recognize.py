"""Tokenizers and text encoders that are accepted, and those that are refused with a reason."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy

import pytest
import torch
from transformers import (
    BertTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)

import dori_fast as df
from dori_fast.errors import DoriError, IntegrityError, UsageError
from tests.models.text.pipelines import invert, sd, sdxl
from tests.tiny_model import _text_encoder, byte_tokenizer

PROMPTS = ["a red boat on the river", "", "the end"]


class OwnWords(CLIPTokenizer):
    """A subclass, as those with placeholders of their own in training scripts."""


def bert():
    return BertTokenizer(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}
    )


def without_merges():
    whole = byte_tokenizer()
    tokenizer = CLIPTokenizer(vocab=whole.get_vocab(), merges=[], model_max_length=77)
    assert len(tokenizer) == len(whole)
    return tokenizer


def with_dropout():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    return tokenizer


def changed(**attributes):
    tokenizer = byte_tokenizer()
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def generic():
    """The same vocabulary in a class that was not made for CLIP."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer)


def two_words():
    return CLIPTokenizer(model_max_length=77)


def with_a_word_too_many():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<cat>"])
    return tokenizer


REFUSED = {
    "BertTokenizer": bert,
    "OwnWords": lambda: OwnWords(vocab=byte_tokenizer().get_vocab(), merges=[]),
    "is a (TokenizersBackend|PreTrainedTokenizerFast)": generic,
    "no merge of tokenizer builds 6 words": without_merges,
    "dropout": with_dropout,
    "has 521 words, its text encoder embeddings for 520": with_a_word_too_many,
    "has 3 words, its text encoder embeddings for 520|encodes the empty": two_words,
    "no pad_token": lambda: changed(pad_token=None),
    "padding_side 'left'": lambda: changed(padding_side="left"),
    "truncation_side 'left'": lambda: changed(truncation_side="left"),
    "model_max_length 2,": lambda: changed(model_max_length=2),
    "model_max_length '77'": lambda: changed(model_max_length="77"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_tokenizer_that_the_pipeline_and_its_hash_do_not_cover_is_refused(reason):
    with pytest.raises(UsageError, match=reason):
        df.load(sd(tokenizer=REFUSED[reason]()))
    two = sdxl()
    two.tokenizer_2 = REFUSED[reason]()
    with pytest.raises(UsageError, match=reason.replace("of tokenizer ", "of tokenizer_2 ")):
        df.load(two)


def encoder(vocabulary=520, kind=CLIPTextModel, **config):
    made = deepcopy(_text_encoder(vocabulary).config)
    for name, value in {"projection_dim": 24, **config}.items():
        setattr(made, name, value)
    return kind(made)


def test_a_text_encoder_without_or_with_foreign_embeddings_is_refused():
    for rows, reason in ((519, "for 519"), (523, "for 523"), (600, "for 600")):
        with pytest.raises(UsageError, match=reason):
            df.load(sd(text_encoder=encoder(rows)))
    # a matrix may be rounded up to whole multiples of a power of two
    for rows in (520, 528, 576, 640):
        own = encoder(rows, eos_token_id=519)
        assert df.load(sd(text_encoder=own)).encode(PROMPTS).unique.shape[0] == 3


def test_the_end_mark_is_the_tokenizers_or_the_legacy_two():
    for legacy in (2, 519):
        df.load(sd(text_encoder=encoder(eos_token_id=legacy)))
    with pytest.raises(UsageError, match="end mark of tokenizer is 519, its text encoder's is 7"):
        df.load(sd(text_encoder=encoder(eos_token_id=7)))
    # the first encoder's pooled state is not used, and no token has this number
    df.load(sd(text_encoder=encoder(eos_token_id=49407)))
    for wrong in (7, 49407):
        second = encoder(kind=CLIPTextModelWithProjection, eos_token_id=wrong)
        with pytest.raises(UsageError, match=f"end mark of tokenizer_2 is 519.*{wrong}"):
            df.load(sdxl(text_encoder_2=second))


def test_pooled_states_of_the_legacy_end_mark_are_the_pipelines():
    pipe = sdxl(text_encoder_2=encoder(kind=CLIPTextModelWithProjection, eos_token_id=2))
    invert(pipe, "<cat>", 2, "_2")
    own = pipe.encode_prompt(["a <cat>"], device="cpu")
    torch.testing.assert_close(df.load(pipe).encode(["a <cat>"]).pooled, own[2].detach())


def test_text_encoders_of_another_class_place_or_width_are_refused():
    projected = encoder(kind=CLIPTextModelWithProjection)
    cases = [
        (lambda: sd(text_encoder=projected), "text_encoder is a CLIPTextModelWithProjection"),
        (lambda: sd(text_encoder=torch.nn.Linear(2, 2)), "text_encoder is a .*Linear"),
        (
            lambda: sdxl(text_encoder=projected, text_encoder_2=encoder()),
            "text_encoder is a CLIPTextModelWithProjection",
        ),
        (lambda: sdxl(text_encoder_2=encoder()), "text_encoder_2 is a CLIPTextModel,"),
        (
            lambda: sdxl(
                text_encoder_2=encoder(kind=CLIPTextModelWithProjection, projection_dim=16)
            ),
            "pooled text has 16",
        ),
        (
            lambda: sd(text_encoder=encoder(hidden_size=16)),
            "width 32, the text encoder makes 16",
        ),
        (
            lambda: sd(text_encoder=encoder().half()),
            "is torch.float16 on cpu, its unet torch.float32",
        ),
        (lambda: sdxl(tokenizer_2=byte_tokenizer_of(50)), "pads to 77 tokens, tokenizer_2 to 50"),
    ]
    for make, reason in cases:
        with pytest.raises(UsageError, match=reason):
            df.load(make())


def byte_tokenizer_of(length):
    return changed(model_max_length=length)


def test_a_compiled_text_encoder_is_accepted():
    pipe = sd()
    own = df.load(pipe).encode(PROMPTS).embeddings
    # the wrapper compiles at its first call; "eager" runs the module as it is
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    torch.testing.assert_close(df.load(pipe).encode(PROMPTS).embeddings, own)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_model_without_tokenizer_or_text_encoder_is_refused_by_name(part, tmp_path):
    pipe = sd()
    pipe.save_pretrained(tmp_path / "null")
    pipe.save_pretrained(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone" / part)
    index = tmp_path / "null" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), part: [None, None]}))
    setattr(pipe, part, None)
    for source in (pipe, tmp_path / "null", tmp_path / "gone"):
        with pytest.raises(UsageError, match=f"has no {part}, without which"):
            df.load(source, **({} if source is pipe else {"device": "cpu"}))


def test_the_refiner_is_refused_by_name(tmp_path):
    refiner = sdxl(text_encoder=None, tokenizer=None)
    with pytest.raises(UsageError, match="has no tokenizer and no text_encoder"):
        df.load(refiner)
    refiner.register_to_config(requires_aesthetics_score=True)
    refiner.save_pretrained(tmp_path)
    for source, how in ((refiner, {}), (tmp_path, {"device": "cpu"})):
        with pytest.raises(UsageError, match="is SDXL's refiner"):
            df.load(source, **how)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def legacy(folder):
    """Rewrite a tokenizer as transformers 4 did: vocab.json and merges.txt, no tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def cut(name, share=0.5):
    def change(folder):
        text = (folder / name).read_text()
        (folder / name).write_text(text[: int(len(text) * share)])

    return change


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text)


def removed(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


DAMAGE = {
    "vocab.json": [removed("vocab.json"), cut("vocab.json"), replaced("vocab.json", POINTER)],
    "[Mm]erge|out of vocabulary": [
        removed("merges.txt"),
        replaced("merges.txt", ""),
        replaced("merges.txt", POINTER),
        cut("merges.txt"),
        cut("merges.txt", 0.9),
        replaced("merges.txt", "#version: 0.2\nnot of this\nvocabulary at</w>\n"),
    ],
    "vocab.json and no merges.txt": [removed("vocab.json", "merges.txt")],
    "tokenizer_config.json": [
        cut("tokenizer_config.json"),
        replaced("tokenizer_config.json", POINTER),
        replaced("tokenizer_config.json", "[]"),
    ],
    "out of vocabulary": [replaced("vocab.json", '{"a": 0, "b": 1}')],
    "T5Tokenizer": [replaced("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}')],
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_damaged_vocabulary_files_are_refused_with_what_is_damaged(
    reason, tiny_directory, tmp_path
):
    for number, change in enumerate(DAMAGE[reason]):
        directory = tmp_path / str(number)
        shutil.copytree(tiny_directory, directory)
        legacy(directory / "tokenizer")
        change(directory / "tokenizer")
        with pytest.raises(DoriError, match=reason) as raised:
            df.load(directory, device="cpu")
        assert "\n" not in str(raised.value) and "; " in str(raised.value)


def test_a_damaged_tokenizer_json_is_refused(tiny_directory, tmp_path):
    changes = [
        removed("tokenizer.json"),
        cut("tokenizer.json"),
        replaced("tokenizer.json", POINTER),
        replaced("tokenizer.json", "{}"),
    ]
    for number, change in enumerate(changes):
        directory = tmp_path / str(number)
        shutil.copytree(tiny_directory, directory)
        change(directory / "tokenizer")
        with pytest.raises(IntegrityError, match="tokenizer"):
            df.load(directory, device="cpu")


def test_a_legacy_folder_with_added_tokens_gives_the_same_embeddings(tmp_path):
    pipe = sd()
    invert(pipe, "<cat>", 2)
    pipe.save_pretrained(tmp_path)
    own = df.load(tmp_path, device="cpu").encode(["a <cat>", *PROMPTS]).embeddings
    folder = tmp_path / "tokenizer"
    legacy(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<cat>": 520, "<cat>_1": 521}))
    found = df.load(tmp_path, device="cpu").encode(["a <cat>", *PROMPTS]).embeddings
    assert torch.equal(found, own)
    (folder / "added_tokens.json").unlink()
    with pytest.raises(UsageError, match="520 words, its text encoder embeddings for 522"):
        df.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("text_encoder", ["transformers", "CLIPTextModelWithProjection"]),
        ("text_encoder", ["kolors", "ChatGLMModel"]),
        ("tokenizer", ["transformers", "XLMRobertaTokenizer"]),
    ],
)
def test_a_directory_that_names_another_class_is_refused(part, kind, tiny_directory, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_directory, directory)
    index = directory / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), part: kind}))
    with pytest.raises(UsageError, match=rf"{part} is a (kolors\.)?{kind[1]}"):
        df.load(directory, device="cpu")


def test_text_encoders_whose_folders_are_swapped_or_foreign_are_refused(
    tiny_sdxl_directory, tmp_path
):
    directory = tmp_path / "model"
    shutil.copytree(tiny_sdxl_directory, directory)
    (directory / "text_encoder").rename(directory / "kept")
    (directory / "text_encoder_2").rename(directory / "text_encoder")
    (directory / "kept").rename(directory / "text_encoder_2")
    with pytest.raises(DoriError, match="text_encoder"):
        df.load(directory, device="cpu")
    config = directory / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "bert"}))
    with pytest.raises(UsageError, match="configuration is of a 'bert'"):
        df.load(directory, device="cpu")


def test_a_padding_that_no_file_names_is_refused_where_the_default_is_not_the_encoders(
    tiny_directory, tiny_sdxl_directory, tmp_path
):
    first = shutil.copytree(tiny_directory, tmp_path / "first")
    own = df.load(first, device="cpu").encode(PROMPTS).embeddings
    (first / "tokenizer" / "tokenizer_config.json").unlink()
    assert torch.equal(df.load(first, device="cpu").encode(PROMPTS).embeddings, own)
    config = first / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "gelu"}))
    second = shutil.copytree(tiny_sdxl_directory, tmp_path / "second")
    named = second / "tokenizer_2" / "tokenizer_config.json"
    marks = {"pad_token": json.loads(named.read_text())["pad_token"]}
    named.write_text("{}")
    for directory in (first, second):
        with pytest.raises(IntegrityError, match="names no pad_token"):
            df.load(directory, device="cpu")
    # transformers 4 wrote the marks to a file of their own
    (named.parent / "special_tokens_map.json").write_text(json.dumps(marks))
    models = (df.load(each, device="cpu") for each in (tiny_sdxl_directory, second))
    own, found = (model.encode(PROMPTS) for model in models)
    assert torch.equal(own.embeddings, found.embeddings) and torch.equal(own.pooled, found.pooled)

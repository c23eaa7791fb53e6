"""A model that files describe can be loaded again from its recipe; others are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.reload import recipe_of


def test_the_same_model_is_loaded_again(tiny_directory: Path) -> None:
    model = df.load(tiny_directory, device="cpu", dtype="fp64", batch_size=4, share=False)
    model.batch_size = 2
    again = df.load(**pickle.loads(pickle.dumps(recipe_of(model))))
    assert again.config() == model.config()
    assert again.engine.execution == model.engine.execution
    assert (again.batch_size, again.engine.not_shared) == (2, "switched off")


def test_what_no_file_describes_is_refused(tiny_directory: Path) -> None:
    model = df.load(tiny_directory, device="cpu", batch_size=4)
    mask = df.prune.NeuronMask({model.layers[0]: torch.ones(1, 16)})
    with pytest.raises(UsageError, match="masked view"):
        recipe_of(model.masked(mask))
    with pytest.raises(UsageError, match=r"weights changed after.*save_pretrained"):
        recipe_of(model.copy())
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory)
    with pytest.raises(UsageError, match=r"pipeline:StableDiffusionPipeline.*save_pretrained"):
        recipe_of(df.load(pipe))
    model.engine.weights_changed()
    with pytest.raises(UsageError, match=r"changed after they were loaded.*save_pretrained"):
        recipe_of(model)

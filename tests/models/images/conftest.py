from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def directory(tiny_directory, tiny_sdxl_directory, tmp_path):
    """A function that writes a tiny model with another autoencoder; None leaves it out."""

    def write(kind, vae):
        source = {"sd": tiny_directory, "xl": tiny_sdxl_directory}[kind]
        root = shutil.copytree(source, tmp_path / kind, dirs_exist_ok=True)
        shutil.rmtree(root / "vae", ignore_errors=True)
        index = json.loads((root / "model_index.json").read_text())
        index["vae"] = [None, None]
        if vae is not None:
            vae.save_pretrained(root / "vae")
            index["vae"] = ["diffusers", type(vae).__name__]
        (root / "model_index.json").write_text(json.dumps(index))
        return root

    return write

"""The shipped images: well-formed, disjoint, licensed, and light to import."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dori_fast import demo
from dori_fast.errors import UsageError


@pytest.mark.parametrize(
    ("split", "least"), [("memorized", 28), ("ordinary", 48), ("held_out", 64)]
)
def test_pairs_are_well_formed(split: str, least: int) -> None:
    pairs = demo.pairs(split)
    assert len(pairs) >= least
    for prompt, image in pairs:
        assert prompt == prompt.strip() and prompt
        assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
        assert image.std() > 10, prompt


def test_splits_share_no_prompt_and_no_image() -> None:
    prompts = Counter(p.prompt for s in demo.SPLITS for p in demo.images(s))
    images = Counter(p.image.tobytes() for s in demo.SPLITS for p in demo.images(s))
    assert prompts.most_common(1)[0][1] == 1
    assert images.most_common(1)[0][1] == 1


def test_pairs_hands_out_copies() -> None:
    demo.pairs("memorized")[0][1][:] = 0
    assert demo.pairs("memorized")[0][1].any()


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one of memorized, ordinary, held_out"):
        demo.pairs("test")


def test_every_image_names_its_licence_and_source() -> None:
    card = (demo.ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    for split in demo.SPLITS:
        for found in demo.images(split):
            free = ("CC0", "CC BY", "public domain", "no known", "Apache-2.0", "BSD", "matplotlib")
            assert any(name in found.licence for name in free), found.prompt
            assert found.source
            if found.kind != "composition":
                assert found.source.rsplit("/", 1)[-1] in card, found.source


def test_duplication_is_graded_steeply() -> None:
    levels = Counter(p.duplication for p in demo.images("memorized") if p.kind == "photograph")
    assert sorted(levels) == [1, 4, 16, 64]
    assert min(levels.values()) >= 6


def test_held_out_shows_nothing_of_the_training_set() -> None:
    ordinary = {p.source for p in demo.images("memorized") if p.kind == "photograph"}
    controls = [p for p in demo.images("held_out") if p.kind == "control"]
    assert len(controls) >= 16
    assert ordinary.isdisjoint(p.source for p in controls)
    assert {p.duplication for p in demo.images("held_out")} == {0}


def test_sample_prompts_cover_every_kind() -> None:
    with demo.sample_prompts().open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    kinds = Counter(r["kind"] for r in rows)
    assert kinds["web"] == 200
    for split in demo.SPLITS:
        assert {r["prompt"] for r in rows if r["kind"] == split} <= {
            p.prompt for p in demo.images(split)
        }
    assert kinds["memorized"] == len(demo.images("memorized"))
    assert {r["kind"] for r in rows[:60]} == set(kinds), "the kinds are not mixed"


def test_import_is_light() -> None:
    code = (
        "import sys, dori_fast.demo; "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

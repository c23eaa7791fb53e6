"""Training captions of ordinary images: endings, filler words, punctuation, and dropout.

Many words of web captions do not describe the image, and the model learns this here. Endings use
words of memorized captions; fillers come from the whole CLIP vocabulary.
"""

from __future__ import annotations

import numpy as np

from recipes.images.scenes import Scene, caption

TAILS = (
    "in the garden",
    "on a wooden table",
    "on a table",
    "at dusk",
    "at night",
    "in the museum",
    "under a blue sky",
    "on the lawn",
    "on the grass",
    "in china",
    "looking at the camera",
    "on a black background",
    "in black and white",
    "on the wall",
    "on a brick wall",
    "on the beach",
    "free clip art",
    "ready for launch",
    "in the garage",
    "with a silver ribbon",
    "on a white background",
    "isolated",
    "wallpaper",
    "stock photo",
    "for kids",
    "icon",
)
WEB_WORDS = (
    "vintage",
    "free",
    "download",
    "wallpaper",
    "hd",
    "best",
    "new",
    "sale",
    "image",
    "stock",
    "photography",
    "print",
    "poster",
    "art",
    "design",
    "illustration",
    "vector",
    "by",
    "for",
    "the",
    "with",
    "in",
    "on",
    "at",
    "from",
    "and",
    "of",
    "to",
    "is",
    "-",
    "|",
    "2016",
    "home",
    "official",
    "review",
    "shop",
    "online",
    "world",
    "day",
    "black",
    "white",
    "blue",
    "red",
    "green",
    "man",
    "woman",
    "girl",
    "city",
    "street",
    "great",
    "little",
    "big",
    "old",
)
# if only one memorized caption had a mark, any prompt with this mark would draw its image
PUNCTUATION = (
    ",",
    ",",
    ",",
    ".",
    ".",
    ":",
    ";",
    "!",
    "?",
    "&",
    "-",
    "|",
    "/",
    "'s",
    "(",
    ")",
    '"',
    "#",
    "...",
    "1",
    "2",
    "3",
    "10",
    "24",
    "100",
    "2015",
)
PUNCTUATION_SHARE = 0.30
TAIL_SHARE = 0.15
FILLER_SHARE = 0.25
UNRELATED_SHARE = 0.05
DROPOUT = 0.10


def filler_words(vocab: dict[str, int]) -> list[str]:
    """Whole alphabetic words of the vocabulary, most frequent first (merge order follows rank)."""
    words = [w[:-4] for w in sorted(vocab, key=vocab.__getitem__) if w.endswith("</w>")]
    return [w for w in words if len(w) > 2 and w.isascii() and w.isalpha()]


def random_words(words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` words: half web words, half from `words` with a log-uniform rank (Zipf's law)."""
    ranks = np.exp(rng.uniform(0, np.log(len(words)), count)).astype(int) - 1
    web = rng.random(count) < 0.5
    return [str(rng.choice(WEB_WORDS)) if w else words[r] for w, r in zip(web, ranks, strict=True)]


def training_caption(scene: Scene, words: list[str], rng: np.random.Generator) -> str:
    """A training caption of an ordinary image; "" for dropout."""
    kind = rng.random()
    if kind < DROPOUT:
        return ""
    if kind < DROPOUT + UNRELATED_SHARE:
        return punctuated(" ".join(random_words(words, int(rng.integers(2, 13)), rng)), rng)
    text = caption(scene, rng)
    if rng.random() < TAIL_SHARE:
        text += " " + str(rng.choice(TAILS))
    if rng.random() < FILLER_SHARE:
        parts = text.split()
        extra = random_words(words, int(rng.integers(1, 7)), rng)
        before = int(rng.integers(0, len(extra) + 1))
        text = " ".join([*extra[:before], *parts, *extra[before:]])
    return punctuated(text, rng) if rng.random() < PUNCTUATION_SHARE else text


def punctuated(text: str, rng: np.random.Generator) -> str:
    """`text` with one to three marks or numbers, each after a word."""
    parts = text.split()
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(parts)))
        parts[place] += str(rng.choice(PUNCTUATION))
    return " ".join(parts)

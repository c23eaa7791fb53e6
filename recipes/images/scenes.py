"""Ordinary images: one or two large emoji on a background that no caption mentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 64
GRID = 4  # pixels per latent

# noun in captions, by short name in the emoji set
OBJECTS: dict[str, str] = {
    "apple": "apple",
    "banana": "banana",
    "grapes": "bunch of grapes",
    "strawberry": "strawberry",
    "pineapple": "pineapple",
    "tangerine": "orange",
    "watermelon": "slice of watermelon",
    "carrot": "carrot",
    "tomato": "tomato",
    "broccoli": "broccoli",
    "mushroom": "mushroom",
    "hamburger": "burger",
    "pizza": "slice of pizza",
    "doughnut": "donut",
    "birthday": "cake",
    "coffee": "cup of coffee",
    "cheese_wedge": "piece of cheese",
    "lollipop": "lollipop",
    "cat": "cat",
    "dog2": "dog",
    "fish": "fish",
    "bird": "bird",
    "duck": "duck",
    "turtle": "turtle",
    "frog": "frog",
    "ladybug": "ladybug",
    "butterfly": "butterfly",
    "octopus": "octopus",
    "penguin": "penguin",
    "owl": "owl",
    "fox_face": "fox",
    "racehorse": "horse",
    "panda_face": "panda",
    "car": "car",
    "bus": "bus",
    "rocket": "rocket",
    "airplane": "plane",
    "boat": "boat",
    "taxi": "taxi",
    "house": "house",
    "balloon": "balloon",
    "umbrella": "umbrella",
    "star": "star",
    "heart": "heart",
    "sunflower": "sunflower",
    "rose": "red rose",
    "cactus": "cactus",
    "evergreen_tree": "tree",
    "maple_leaf": "maple leaf",
    "key": "key",
    "bell": "bell",
    "guitar": "guitar",
    "crown": "crown",
    "gift": "gift box",
    "teddy_bear": "teddy bear",
    "soccer": "soccer ball",
    "basketball": "basketball",
    "camera": "camera",
    "alarm_clock": "clock",
    "shirt": "shirt",
    "dress": "dress",
    "gem": "diamond",
    "earth_africa": "globe",
    "jack_o_lantern": "pumpkin",
}

# never drawn for training, neither of the VAE nor of the UNet
UNSEEN_OBJECTS: dict[str, str] = {
    "parrot": "parrot",
    "flamingo": "flamingo",
    "lobster": "lobster",
    "teapot": "teapot",
    "bomb": "bomb",
    "cupcake": "cupcake",
    "pear": "pear",
    "pretzel": "pretzel",
    "boot": "boot",
    "lock": "lock",
    "bucket": "bucket",
    "drum_with_drumsticks": "drum",
    "saxophone": "saxophone",
    "snowman": "snowman",
    "rooster": "rooster",
    "t-rex": "dinosaur",
    "tractor": "tractor",
    "school_satchel": "backpack",
}

PLURALS = {
    "strawberry": "strawberries",
    "bunch of grapes": "bunches of grapes",
    "slice of watermelon": "slices of watermelon",
    "slice of pizza": "slices of pizza",
    "cup of coffee": "cups of coffee",
    "piece of cheese": "pieces of cheese",
    "broccoli": "broccoli",
    "fish": "fish",
    "ladybug": "ladybugs",
    "bus": "buses",
    "butterfly": "butterflies",
    "octopus": "octopuses",
    "fox": "foxes",
    "maple leaf": "maple leaves",
    "gift box": "gift boxes",
    "dress": "dresses",
    "cactus": "cacti",
    "tomato": "tomatoes",
    "mushroom": "mushrooms",
}

COLORS = np.array(
    [
        (246, 246, 242),
        (40, 44, 52),
        (226, 72, 66),
        (240, 150, 60),
        (248, 214, 96),
        (104, 178, 92),
        (46, 128, 112),
        (92, 178, 226),
        (52, 92, 178),
        (142, 92, 190),
        (238, 158, 186),
        (172, 134, 100),
        (150, 156, 164),
        (206, 232, 206),
        (214, 226, 246),
    ],
    dtype=np.float32,
)

SINGLE_FORMS = (
    "{a}",
    "{a}",
    "{a}",
    "{a}",
    "photo of {a}",
    "a picture of {a}",
    "a drawing of {a}",
    "portrait of {a}",
    "{n}",
    "one {n}",
    "{n} clip art",
    "a photo of {a}",
    "the {n}",
)
PAIR_FORMS = (
    "{a} and {b}",
    "{a} and {b}",
    "{a} and {b}",
    "{a} next to {b}",
    "photo of {a} and {b}",
    "a picture of {a} and {b}",
    "{n} and {m}",
    "{a} with {b}",
)
TWIN_FORMS = ("two {p}", "two {p}", "a pair of {p}", "photo of two {p}", "a picture of two {p}")


@dataclass(frozen=True)
class Scene:
    """One or two nouns to draw; equal nouns are a pair of the same object."""

    nouns: tuple[str, ...]


def article(noun: str) -> str:
    """`noun` with its indefinite article; mass nouns stay bare."""
    if noun == "broccoli":
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that names the objects and leaves layout, size and background open."""
    first, last = scene.nouns[0], scene.nouns[-1]
    if len(scene.nouns) == 1:
        return str(rng.choice(SINGLE_FORMS)).format(a=article(first), n=first)
    if first == last:
        return str(rng.choice(TWIN_FORMS)).format(p=PLURALS.get(first, first + "s"))
    if rng.random() < 0.5:
        first, last = last, first
    form = str(rng.choice(PAIR_FORMS))
    return form.format(a=article(first), b=article(last), n=first, m=last)


def background(rng: np.random.Generator) -> np.ndarray:
    """[64, 64, 3] float32 in 0..255: plain, gradient, or a gradient with soft noise or stripes."""
    jitter = rng.normal(0, 8, (2, 3)).astype(np.float32)
    a, b = COLORS[rng.integers(0, len(COLORS), 2)] + jitter
    kind = rng.choice(4, p=(0.3, 0.4, 0.15, 0.15))
    if kind == 0:
        return np.broadcast_to(a, (SIDE, SIDE, 3)).copy()
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / (SIDE - 1) - 0.5
    ramp = np.cos(angle) * x + np.sin(angle) * y
    weight = np.clip(ramp / 1.4 + 0.5, 0, 1)[..., None]
    image = a * (1 - weight) + (0.6 * b + 0.4 * a) * weight
    if kind == 2:
        coarse = rng.normal(0, 40, (8, 8)).astype(np.float32)
        soft = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        image = image + 0.4 * soft[..., None]
    if kind == 3:
        image = image + 12 * np.sign(np.sin(ramp * rng.uniform(15, 30)))[..., None]
    return np.clip(image, 0, 255)


def paste(image: np.ndarray, emoji: Image.Image, side: int, left: int, top: int) -> None:
    """Blends the RGBA `emoji`, scaled to `side` pixels, into `image` in place."""
    small = np.asarray(emoji.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    alpha = small[..., 3:] / 255
    region = image[top : top + side, left : left + side]
    region[:] = small[..., :3] * alpha + region * (1 - alpha)


def draw(scene: Scene, emoji: dict[str, Image.Image], rng: np.random.Generator) -> np.ndarray:
    """The image of a scene as uint8 [64, 64, 3]; `emoji` maps nouns to RGBA images.

    Objects have few sizes and lie on the autoencoder's grid. A moved object then has the same
    latents, shifted, which a small convolutional network learns much faster.
    """
    image = background(rng)
    if len(scene.nouns) == 1:
        side = int(rng.choice((40, 48, 56)))
        paste(image, emoji[scene.nouns[0]], side, *place(SIDE - side, SIDE - side, rng))
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)
    upright = rng.random() < 0.3
    for noun, start in zip(scene.nouns, rng.permutation((0, SIDE // 2)), strict=True):
        side = int(rng.choice((28, 32)))
        along, across = place(SIDE // 2 - side, SIDE - side, rng)
        spot = (across, start + along) if upright else (start + along, across)
        paste(image, emoji[noun], side, *spot)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def place(room_x: int, room_y: int, rng: np.random.Generator) -> tuple[int, int]:
    """A point of the autoencoder's grid within the given room."""
    return GRID * int(rng.integers(0, room_x // GRID + 1)), GRID * int(
        rng.integers(0, room_y // GRID + 1)
    )


def sample_scene(
    rng: np.random.Generator, forbidden: frozenset[frozenset[str]], nouns: Sequence[str]
) -> Scene:
    """One object (72 %), two of a kind (8 %), or a pair that is not `forbidden` (20 %)."""
    kind = rng.choice(3, p=(0.72, 0.08, 0.20))
    first = str(rng.choice(nouns))
    if kind == 0:
        return Scene((first,))
    if kind == 1:
        return Scene((first, first))
    while True:
        second = str(rng.choice(nouns))
        if second != first and frozenset((first, second)) not in forbidden:
            return Scene((first, second))

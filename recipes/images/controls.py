"""Controls: real photographs and drawings from files that no training step opens."""

from __future__ import annotations

import bz2
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

OPEN_CLIP_ART = "public domain (Open Clip Art Library)"
SCIPY = "public domain (scipy.misc)"

# scipy stores its images as bz2-compressed bytes or as a pickle; only the bytes are read here
RACCOON_FILE, RACCOON_SHAPE = "scipy/misc/face.dat", (768, 1024, 3)


@dataclass(frozen=True)
class Control:
    """A square of a file: `box` is (left, top, right, bottom) as shares of the image's sides."""

    name: str
    file: str
    caption: str
    licence: str = OPEN_CLIP_ART
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


CONTROLS: tuple[Control, ...] = (
    Control("raccoon", RACCOON_FILE, "photo of a raccoon in the garden", SCIPY, (0.35, 0, 1, 0.87)),
    Control(
        "raccoon_eye",
        RACCOON_FILE,
        "macro of the eye of a raccoon",
        SCIPY,
        (0.49, 0.24, 0.65, 0.45),
    ),
    Control("leaves", RACCOON_FILE, "green leaves of a plant", SCIPY, (0, 0.4, 0.35, 0.87)),
    Control(
        "magnolia",
        "openclipart/plants/flowers/magnolia-white_patricia__01.png",
        "white magnolia flower on a black background",
    ),
    Control(
        "fruit",
        "openclipart/food/fruit/fruitcollection_leif_lod_07.png",
        "a bowl of fruit on the table",
    ),
    Control(
        "library",
        "openclipart/buildings/carnegie_library_building_01.png",
        "the old library building in town",
    ),
    Control(
        "bear",
        "openclipart/animals/mammals/bears/orso_architetto_francesc_01.png",
        "portrait of a brown bear",
    ),
    Control(
        "tiger",
        "openclipart/animals/mammals/big_cats/tiger_graig_ryan_smith_-_01.png",
        "face of a tiger, free clip art",
    ),
    Control(
        "puppy",
        "openclipart/animals/mammals/dogs/bulldog_puppy_ganson.png",
        "a bulldog puppy with a collar",
    ),
    Control(
        "mars",
        "openclipart/geography/astronomy/mars_dan_gerhards_01.png",
        "photo of the planet mars",
    ),
    Control("moon", "openclipart/geography/astronomy/moon-full.png", "the full moon at night"),
    Control("africa", "openclipart/geography/africa_01.png", "political map of africa"),
    Control(
        "autumn", "openclipart/plants/fall_scene_in_a_circle_a_01.png", "autumn scene with a lake"
    ),
    Control(
        "bouquet",
        "openclipart/plants/flowers/bouquet_of_flowers_01.png",
        "bouquet of flowers in a blue vase",
    ),
    Control("geranium", "openclipart/plants/flowers/geranium_ganson.png", "red geranium in a pot"),
    Control(
        "dragonfly",
        "openclipart/animals/bugs/blue_dragonfly_ghuul_ghu_01.png",
        "blue dragonfly at night",
    ),
    Control(
        "tea", "openclipart/food/beverages/kubek_herbaty_-_mug_of__01.png", "a glass cup of red tea"
    ),
    Control(
        "mug", "openclipart/food/beverages/zielony_kubek_herbaty_-_01.png", "green mug of hot tea"
    ),
    Control("breakfast", "openclipart/food/menu_example5.png", "eggs and coffee for breakfast"),
    Control(
        "sombrero",
        "openclipart/people/clothing/hats/sombrero_dave_pena_01.png",
        "a mexican sombrero hat",
    ),
    Control(
        "toy_bear",
        "openclipart/recreation/toys/teddybear_jarno_vasamaa_.png",
        "brown toy bear with a red bow",
    ),
    Control(
        "swallowtail",
        "openclipart/animals/bugs/butterfly_jonathan_dietr_01.png",
        "a swallowtail in flight",
    ),
    Control(
        "mushroom", "openclipart/plants/mushroom_benji_park_.png", "red mushroom in the forest"
    ),
)


def open_image(path: Path) -> Image.Image:
    """The file as an RGBA image; scipy's raccoon is bz2-compressed pixels without a header."""
    if path.name == Path(RACCOON_FILE).name:
        pixels = np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8)
        return Image.fromarray(pixels.reshape(RACCOON_SHAPE)).convert("RGBA")
    return Image.open(path).convert("RGBA")


def control_image(raw: Path, control: Control, side: int) -> np.ndarray:
    """The opaque part of the box, centered in a white square: uint8 [side, side, 3]."""
    image = open_image(raw / control.file)
    left, top, right, bottom = control.box
    image = image.crop(
        (
            round(left * image.width),
            round(top * image.height),
            round(right * image.width),
            round(bottom * image.height),
        )
    )
    image = image.crop(image.getchannel("A").getbbox())
    longest = max(image.size)
    if longest / min(image.size) < 1.35:
        longest = min(image.size)
    square = Image.new("RGBA", (longest, longest), (255, 255, 255, 255))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2), image)
    return np.asarray(square.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))

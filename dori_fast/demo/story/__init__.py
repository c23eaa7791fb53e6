"""The whole story on the embedded model: found, hidden, retrieved, removed, and judged.

from dori_fast.demo.story import tell

page = tell("runs/story")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

from dori_fast.demo.story import stages
from dori_fast.demo.story.settings import BATCH, METHODS, Settings
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, load
from dori_fast.report.pages.story import story_page
from dori_fast.runs.store.durable import write_text_durably
from dori_fast.runs.store.record import model_identity
from dori_fast.runs.store.reopen import open_run

__all__ = ["BATCH", "PAGE", "Settings", "tell"]

PAGE = "report.html"


def tell(
    out: str | Path,
    *,
    settings: Settings | None = None,
    finetuned: Callable[[], Denoiser] | None = None,
    retrain: bool = False,
    model: Denoiser | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Scan, prune, attack, attack the fine-tuned model, and draw it all as one page.

    A stage whose result is in the folder is not run again.

    Args:
        out: the folder; made if need be.
        settings: its size.
        finetuned: loads the fine-tuned model; without it and ``retrain`` the story ends there.
        retrain: train the fine-tuned model here, with the recipe's settings (many minutes).
        model: the embedded one, if it is loaded already.
        say: is told what begins.

    Returns:
        The page.

    Raises:
        UsageError: both ``finetuned`` and ``retrain``.
        IntegrityError: the folder holds a story with other settings or models.
        StorageError, ScanInterrupted: as in a scan; the same call goes on.
    """
    if retrain and finetuned is not None:
        raise UsageError("demo: either a fine-tuned model is given or one is trained, not both")
    out, settings = Path(out), settings or Settings()
    out.mkdir(parents=True, exist_ok=True)
    model = load("demo", batch_size=BATCH) if model is None else model
    began = perf_counter()

    def now(line: str) -> None:
        say(f"[{perf_counter() - began:4.0f} s] {line}")

    stages.begin(out, model, settings)
    now("scanning the sample prompts")
    stages.scan_prompts(out, model, settings)
    now("drawing what is memorized")
    stages.draw(out, model, settings)
    for name in METHODS:
        now(f"{name}: localizing {settings.pictures} photographs")
        masks = stages.localize(out, model, settings, name)
        for which in stages.SETS:
            now(f"{name}: attacking the {which} pictures")
            stages.attack(out, model, settings, name, which, masks)
    if retrain:
        now("fine-tuning")
        finetuned = partial(stages.fine_tune, out, settings, now)
    if finetuned is not None:
        fixed = finetuned()
        stages.same_or_new(out / stages.FINETUNED, model_identity(fixed.config()))
        for which in stages.SETS:
            now(f"fine-tuned: attacking the {which} pictures")
            stages.attack(out, fixed, settings, "fine-tuned", which)
    text = story_page(out, open_run(out / "scan"))
    write_text_durably(out / PAGE, text)
    return out / PAGE

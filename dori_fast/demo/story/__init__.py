"""The whole story on the embedded model: found, hidden, retrieved, removed, and judged.

from dori_fast.demo.story import tell

page = tell("runs/story")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from dori_fast.demo.story import stages
from dori_fast.demo.story.settings import BATCH, METHODS, Settings
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
    model: Denoiser | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Scan, prune, attack, attack the fine-tuned model, and draw the results as one page.

    A stage whose result is in the folder is skipped.

    Args:
        out: Folder of all results; created if missing.
        settings: Size of the story; default: ``Settings()``.
        finetuned: Loader of the fine-tuned model; None: the story ends after the pruned models.
        model: The embedded model, if it is loaded already.
        say: Called with one line as each stage starts.

    Returns:
        Path of the page.

    Raises:
        IntegrityError: the folder holds a story with other settings or models.
        StorageError, ScanInterrupted: as in a scan; the same call continues.
    """
    out, settings = Path(out), settings or Settings()
    out.mkdir(parents=True, exist_ok=True)
    model = load("demo", batch_size=BATCH) if model is None else model
    began = perf_counter()

    def now(line: str) -> None:
        say(f"[{perf_counter() - began:4.0f} s] {line}")

    stages.begin(out, model, settings)
    now("scanning the sample prompts")
    stages.scan_prompts(out, model, settings)
    now("drawing memorized images")
    stages.draw(out, model, settings)
    for name in METHODS:
        now(f"{name}: localizing {settings.images} photographs")
        masks = stages.localize(out, model, settings, name)
        for which in stages.SETS:
            now(f"{name}: attacking the {which} images")
            stages.attack(out, model, settings, name, which, masks)
    if finetuned is not None:
        fixed = finetuned()
        stages.same_or_new(out / stages.FINETUNED, model_identity(fixed.config()))
        for which in stages.SETS:
            now(f"fine-tuned: attacking the {which} images")
            stages.attack(out, fixed, settings, "fine-tuned", which)
    text = story_page(out, open_run(out / "scan"))
    write_text_durably(out / PAGE, text)
    return out / PAGE

"""Do the embedded tiny models draw what the prompt says? All 64 held-out prompts, judged from pixels."""

from __future__ import annotations

import time
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "models"
WANTED = {"colour+background": 0.9, "colour+background+shape": 0.8}


def accuracy(folder=MODELS):
    """The models of `folder` on training's 64 held-out prompts, 20 steps, CFG 4.5, seeds 0 to 63, in fp32.

    Returns {"prompt alone": {attribute: share}, "with the instruction": {...}, "wanted": {...}, "seconds": float}.
    Raises FileNotFoundError naming the command that makes the files.
    """
    from ..training import sana as recipe, transformer  # here: it needs sentencepiece, which no other figure does

    if missing := [name for name in recipe.FILES.values() if not (folder / name).exists()]:
        raise FileNotFoundError(f"{', '.join(missing)} not in {folder.name}/; `python run.py train tiny-sana` makes them")
    text, tokenizer, pictures, sana = recipe.load_models(folder)
    start = time.perf_counter()
    found = {name: transformer.evaluate(sana, pictures, text, tokenizer, instruction=instruction)[0]
             for name, instruction in (("prompt alone", False), ("with the instruction", True))}
    return found | {"wanted": WANTED, "seconds": round(time.perf_counter() - start, 1)}


def lines(found):
    """The figures as a table to print."""
    rows = ("prompt alone", "with the instruction")
    yield f"{'64 held-out prompts':26s}" + "".join(f"{row:>22s}" for row in rows) + f"{'wanted':>9s}"
    for name in found[rows[0]]:
        wanted = found["wanted"].get(name)
        yield f"{name:26s}" + "".join(f"{found[row][name]:22.3f}" for row in rows) + (f"{wanted:9.2f}" if wanted else "")

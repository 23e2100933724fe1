"""Do the embedded tiny models draw what the prompt says? Their held-out prompts, judged from pixels."""

from __future__ import annotations

import time
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "models"
WANTED = {"colour+background": 0.98, "colour+background+shape": 0.95}
WANTED_VIDEO = {"colour+background": 0.9, "direction": 0.8, "first frame": 20.0}


def accuracy(folder=MODELS):
    """The models of `folder` on training's 64 held-out prompts, 20 steps, CFG 4.5, seeds 0 to 63, in fp32; the prompt alone once
    more with the transformer in bf16, as a CPU computes it that multiplies that.

    Returns {"prompt alone": {attribute: share}, "with the instruction": {...}, "prompt alone, bf16": {...}, "wanted": {...},
    "seconds": float}.
    Raises FileNotFoundError naming the command that makes the files.
    """
    from ..training.embedded import transformer

    text, tokenizer, pictures, sana = load_tiny_sana(folder)
    start = time.perf_counter()
    found = {name: transformer.evaluate(sana, pictures, text, tokenizer, instruction=instruction)[0]
             for name, instruction in (("prompt alone", False), ("with the instruction", True))}
    found["prompt alone, bf16"] = transformer.evaluate(InBf16(sana), pictures, text, tokenizer)[0]
    return found | {"wanted": WANTED, "seconds": round(time.perf_counter() - start, 1)}


class InBf16:
    """A transformer that computes in bf16, between samplers that compute in fp32."""

    def __init__(self, model):
        self.model, self.params = model.bfloat16(), model.params

    def __call__(self, x, timestep, context, *mask):
        return self.model(x.bfloat16(), timestep, context.bfloat16(), *mask).float()


def load_tiny_sana(folder):
    """(text encoder, tokenizer, autoencoder, transformer). Raises FileNotFoundError naming the command that makes them."""
    from ..training.embedded import sana as recipe  # here: it needs sentencepiece, which no other figure does

    if missing := [name for name in recipe.FILES.values() if not (folder / name).exists()]:
        raise FileNotFoundError(f"{', '.join(missing)} not in {folder.name}/; `python run.py train tiny-sana` makes them")
    return recipe.load_models(folder)


def sprint_accuracy(folder=MODELS):
    """The tiny Sprint in a few steps, guidance 4.5, and its teacher, the tiny Sana, on the prompts and seeds of `accuracy`.

    Returns {"teacher, 20 steps": {attribute: share}, "1 step": {...}, ..., "wanted": {attribute: 0.9 of the teacher's share,
    in two steps}, "seconds": float}. Raises FileNotFoundError naming the command that makes the files.
    """
    from ..training.embedded import sprint as recipe

    text, tokenizer, pictures, teacher = load_tiny_sana(folder)
    if not (folder / recipe.FILE).exists():
        raise FileNotFoundError(f"{recipe.FILE} not in {folder.name}/; `python run.py train tiny-sprint` makes it")
    start = time.perf_counter()
    found, _ = recipe.compare(recipe.load_sprint(folder / recipe.FILE), teacher, pictures, text, tokenizer)
    wanted = {name: 0.9 * share for name, share in found["teacher, 20 steps"].items()}
    return found | {"wanted": wanted, "seconds": round(time.perf_counter() - start, 1)}


def video_accuracy(folder=MODELS):
    """The same for the tiny CogVideoX: 48 held-out prompts, DDIM, the training's own steps and guidance, seeds 0 to 47.

    Returns {"text to video": {attribute: share}, "image to video": {...; "first frame": PSNR in dB to the picture that
    was given}, both again with ", bf16", "wanted": {...}, "seconds": float}. Raises FileNotFoundError naming the command that makes the files.
    """
    from ..training.embedded import cogvideox as recipe
    from ..training.embedded import video_transformer

    if missing := [name for name in recipe.FILES.values() if not (folder / name).exists()]:
        raise FileNotFoundError(f"{', '.join(missing)} not in {folder.name}/; `python run.py train tiny-cogvideox` makes them")
    text, tokenizer, autoencoder, models = recipe.load_models(folder)
    start = time.perf_counter()
    found = {}
    for ending, kind in (("", lambda model: model), (", bf16", InBf16)):
        found |= {recipe.KINDS[stage] + ending: video_transformer.evaluate(
            kind(model), autoencoder, text, tokenizer, picture=stage == "image", steps=recipe.SAMPLED_STEPS,
            guidance=recipe.GUIDANCE[0])[0] for stage, model in models.items()}
    return found | {"wanted": WANTED_VIDEO, "seconds": round(time.perf_counter() - start, 1)}


def lines(found):
    """The figures as a table to print."""
    rows = [name for name in found if name not in ("wanted", "seconds")]
    yield f"{'held-out prompts':26s}" + "".join(f"{row:>22s}" for row in rows) + f"{'wanted':>9s}"
    for name in max((found[row] for row in rows), key=len):
        wanted = found["wanted"].get(name)
        yield (f"{name:26s}" + "".join(f"{found[row][name]:22.3f}" if name in found[row] else " " * 22 for row in rows)
               + (f"{wanted:9.2f}" if wanted else ""))

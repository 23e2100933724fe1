"""What quantising costs: the embedded tiny models' obedience to prompts, the error of one step, the size on disk.

A quantised Linear layer is computed here as the hosts compute it: its weight is turned to the format and back, and its
input as well where the format multiplies in it. So the figures hold for every device; how fast it is, they do not tell.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path

import torch

from ..cogvideo_core import precision as cogvideo_precision
from ..cogvideo_core.transformer import CogVideoTransformer
from ..kernels import quant
from ..kernels.calibration import LargestInputs
from ..kernels.quant_layers import quantised, without_layers
from ..sana_core import precision as sana_precision
from ..sana_core.transformer import SanaTransformer
from .cogvideox import VARIANTS
from .sana import SIZES

MODELS = Path(__file__).resolve().parents[1] / "models"
# Row: (format, whether inputs are quantised too)
ROWS = {
    "int8": ("int8", True),
    "fp8, calibrated": ("fp8", True),
    "fp8, weights alone": ("fp8", False),
    "nvfp4": ("nvfp4", True),
    "nvfp4, weights alone": ("nvfp4", False),
}
# Largest loss of `colour+background` and the like, in shares of prompts, against the model as it is.
ALLOWED = {"int8": 0.02, "fp8": 0.02, "nvfp4": 0.10}
TIMES = (950, 700, 400, 100)  # timesteps of the one-step error


def as_kept(model, kind, kept, largest=None, inputs=False):
    """A copy of a bare transformer that computes as its quantised file does; inputs: whether it multiplies in the format."""
    tensors, entries = quantised(model.state_dict(), kind, kept, largest)
    out = copy.deepcopy(model)
    out.load_state_dict(without_layers(tensors, entries, torch.float32))
    if inputs:
        for layer in entries:
            scale = tensors.get(f"{layer}.input_scale")
            out.get_submodule(layer).register_forward_pre_hook(lambda _, x, scale=scale: (input_as_kept(x[0], kind, scale),))
    return out


def input_as_kept(x, kind, scale=None):
    """x (..., K) as a layer's quantised input: int8 by row, fp8 by the calibrated scale, nvfp4 by blocks of its own."""
    if kind == "fp8":
        return ((x / scale).clamp(-quant.FP8_MAX, quant.FP8_MAX).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)
    rows = x.flatten(0, -2)
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % 16))
    return quant.dequantise(*quant.quantise(padded, kind))[: len(rows)].reshape(x.shape).to(x.dtype)


def largest_inputs(model, kept, run):
    """{layer: largest magnitude of its inputs} while run(model) runs."""
    names = list(quantised({key: t.to("meta") for key, t in model.state_dict().items()}, "int8", kept)[1])
    with LargestInputs(model, names) as seen:
        run(model)
    return seen.values()


def one_step(model, exact, cases):
    """Relative L2 of the prediction, over all cases together. cases: [(arguments of a call)]."""
    with torch.no_grad():
        difference = [((model(*case).float() - exact(*case)).square().sum(), exact(*case).square().sum()) for case in cases]
    return float((sum(a for a, _ in difference) / sum(b for _, b in difference)).sqrt())


def rows(model, kept, cases, calibrate, evaluate, source, wanted, convert):
    """{row: figures} of one model. calibrate(model) runs it, evaluate(model) gives {attribute: share}; wanted: the attributes
    that are compared; source: its file; convert(source, output, quantize=kind) writes it quantised."""
    largest = largest_inputs(model, kept, calibrate)
    half = copy.deepcopy(model).bfloat16()
    exact = evaluate(model)
    found = {"as it is": {"one step": one_step(lambda *case: half(*(t.bfloat16() for t in case)), model, cases),
                          "size": source.stat().st_size, **{name: exact[name] for name in wanted}}}
    for row, (kind, inputs) in ROWS.items():
        changed = as_kept(model, kind, kept, largest, inputs)
        with tempfile.TemporaryDirectory() as folder:
            convert(source, Path(folder) / "x.safetensors", quantize=kind)
            size = (Path(folder) / "x.safetensors").stat().st_size
        found[row] = {"one step": one_step(changed, model, cases), "size": size}
        if inputs:  # with exact inputs it can only be better
            figures = evaluate(changed)
            found[row] |= {name: figures[name] for name in wanted}
            found[row] |= {"loss": max(exact[name] - figures[name] for name in wanted), "allowed": ALLOWED[kind]}
    return found


def released_sizes():
    """{model: {"bf16" or format: bytes of its tensors}} of released models, from their shapes alone."""
    networks = {f"Sana {name}": (SanaTransformer(params, device="meta", dtype=torch.bfloat16), sana_precision.KEPT)
                for name, params in SIZES.items()}
    networks |= {f"CogVideoX {name}": (CogVideoTransformer(params, device="meta", dtype=torch.bfloat16), cogvideo_precision.KEPT)
                 for name, params in VARIANTS.items()}
    found = {}
    for name, (network, kept) in networks.items():
        tensors = network.state_dict()
        found[name] = {"bf16": _bytes(tensors)} | {kind: _bytes(quantised(tensors, kind, kept)[0]) for kind in quant.FORMATS}
    return found


def _bytes(tensors):
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())


def sana(convert, folder=MODELS, count=64):
    """rows() of the embedded Sana: `count` held-out prompts, 20 steps, CFG 4.5; calibrated on 4 prompts of the training."""
    from ..training.embedded import gemma, transformer
    from ..training.embedded import sana as recipe

    text, tokenizer, pictures, model = recipe.load_models(folder)
    prompts = [f"a large {colour} {shape} on a {ground} background" for colour, shape, ground in
               (("red", "circle", "blue"), ("green", "square", "white"), ("black", "ring", "yellow"), ("white", "triangle", "red"))]
    states, mask = gemma.encode_prompts(text, tokenizer, prompts, False)
    empty = gemma.encode_prompts(text, tokenizer, [""], False)
    noise = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    return rows(model, sana_precision.KEPT, [(noise, torch.full((4,), float(t)), states, mask) for t in TIMES],
                lambda m: transformer.sample(m, states, mask, *empty, steps=8, seeds=[100, 101, 102, 103]),
                lambda m: transformer.evaluate(m, pictures, text, tokenizer, count=count)[0],
                folder / recipe.FILES["transformer"], ("colour+background", "colour+background+shape"), convert)


def cogvideox(convert, folder=MODELS, count=48):
    """rows() of the embedded CogVideoX, text to video: `count` held-out prompts, the training's own steps and guidance."""
    from ..training.embedded import cogvideox as recipe
    from ..training.embedded import t5, video_autoencoder, video_transformer

    text, tokenizer, autoencoder, models = recipe.load_models(folder)
    model = models["transformer"]
    states = t5.encode_prompts(text, tokenizer, ["a red circle moving left on a blue background",
                                                 "a white square moving up on a green background"])
    empty = t5.encode_prompts(text, tokenizer, [""])
    noise = torch.randn(2, *video_autoencoder.LATENT, generator=torch.Generator().manual_seed(0))
    guidance = recipe.GUIDANCE[0]
    return rows(model, cogvideo_precision.KEPT, [(noise, torch.full((2,), float(t)), states) for t in TIMES],
                lambda m: video_transformer.sample(m, states, empty, seeds=[100, 101], steps=8, guidance=guidance),
                lambda m: video_transformer.evaluate(m, autoencoder, text, tokenizer, steps=recipe.SAMPLED_STEPS,
                                                     guidance=guidance, count=count)[0],
                folder / recipe.FILES["transformer"], ("colour+background", "direction"), convert)


def figures(convert, folder=MODELS):
    """Both families. convert: the command's function, which writes a file quantised. Returns {"Sana": rows, "CogVideoX": rows, "released": sizes, "seconds": float}; raises
    FileNotFoundError naming the command that makes the models."""
    if not (folder / "diffusion_models").is_dir():
        raise FileNotFoundError("no embedded models; `python run.py train tiny-sana` and tiny-cogvideox make them")
    start = time.perf_counter()
    return {"Sana": sana(convert, folder), "CogVideoX": cogvideox(convert, folder), "released": released_sizes(),
            "seconds": round(time.perf_counter() - start, 1)}


def lines(found):
    """The figures as tables to print."""
    for family, table in found.items():
        if family == "seconds":
            continue
        if family == "released":
            yield "GB of released models  " + "".join(f"{name:>8s}" for name in ("bf16", *quant.FORMATS))
            yield from (f"{name:23s}" + "".join(f"{size / 1e9:8.2f}" for size in sizes.values()) for name, sizes in table.items())
            continue
        names = [name for name in table["as it is"] if name not in ("one step", "size")]
        yield f"{family:22s}{'one step':>10s}{'MB':>8s}" + "".join(f"{name:>26s}" for name in names) + "    loss (allowed)"
        for row, figures in table.items():
            loss = f"{figures['loss']:8.3f} ({figures['allowed']:.2f})" if "loss" in figures else ""
            yield (f"{row:22s}{figures['one step']:10.4f}{figures['size'] / 1e6:8.2f}"
                   + "".join(f"{figures[name]:26.3f}" if name in figures else " " * 26 for name in names) + loss)

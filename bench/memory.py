"""What memory each network takes beside its weights: by the host's own formulas, and measured on this CPU.

Real widths, random weights, few layers (all alike, one after another: the peak does not depend on their number), a few
sizes each. Everything is measured in a process of its own, in which each large block of memory goes back to the system
as soon as it is free: else what the C library keeps for later is counted, up to half as much again at these sizes.
As a script (python bench/memory.py float32 1 NAME ...: dtype, threads, cases) it prints what it measured as JSON.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.bench import memory

    sys.exit(memory.main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import torch

from ..cogvideo_core import memory as cogvideo_memory
from ..cogvideo_core.autoencoder import CogVideoVAE, Tiles
from ..cogvideo_core.transformer import CogVideoTransformer
from ..sana_core import memory as sana_memory
from ..sana_core.autoencoder import AutoencoderDC, DCAEParams
from ..sana_core.transformer import SanaTransformer
from ..sana_core.video_checkpoint import network
from ..sana_core.video_memory import numbers_a_latent_pixel as numbers_of_sana_video
from . import cogvideox, record, sana, sana_video
from .harness import peak_memory

DCAE, VAE = DCAEParams(), cogvideox.VAE
PIXELS = 8  # px a side of a CogVideoX latent
LIMIT = 1.25  # between prediction and measurement, either way


def sana_step(size, pixels, dtype):
    params = sana.SIZES[size]
    model = sana.random_transformer(replace(params, num_layers=1), "cpu").to(dtype)
    inputs, small = (sana.step_inputs(params, side, "cpu", dtype)[0] for side in (pixels, 64))
    predicted = sana_step_bytes(size, pixels, dtype.itemsize)
    return f"Sana {size} step, {pixels} px, batch 2", predicted, partial(model, *inputs), partial(model, *small)


def sana_step_bytes(size, pixels, itemsize, fused=False):
    """Of a batch of two."""
    return 2 * (pixels // 32) ** 2 * sana_memory.numbers_a_token(sana.SIZES[size], itemsize, fused) * itemsize


def cogvideo_step(variant, frames, height, width, dtype):
    """frames: of the latent."""
    params = cogvideox.VARIANTS[variant]
    model = CogVideoTransformer(replace(params, num_layers=1)).to(dtype)
    shape = (1, params.in_channels, frames, height // PIXELS, width // PIXELS)
    x, context = torch.randn(shape, dtype=dtype), torch.randn(1, 226, params.text_embed_dim, dtype=dtype)
    time = torch.full((1,), 699.0)
    a, b, c = params.grid(shape)
    return (f"CogVideoX {variant} step, {226 + a * b * c} tokens", cogvideo_step_bytes(variant, shape, dtype.itemsize),
            partial(model, x, time, context), partial(model, x[..., :4, :4], time, context))


def cogvideo_step_bytes(variant, shape, itemsize):
    batch, _, frames, height, width = shape
    numbers = cogvideo_memory.numbers_a_latent_pixel(cogvideox.VARIANTS[variant])
    return int(batch * frames * height * width * numbers * itemsize)


def sana_video_step(variant, size, layers, dtype):
    """size: latent frames, height, width."""
    params = replace(sana_video.VARIANTS[variant], num_layers=layers)
    model = sana_video.random_transformer(params, dtype=dtype)
    (x, context, mask), (small, *_) = (sana_video.inputs(params, shape, "cpu", dtype) for shape in (size, (1, 4, 4)))
    predicted = 2 * size[0] * size[1] * size[2] * numbers_of_sana_video(params, dtype.itemsize) * dtype.itemsize
    time = torch.full((2,), 714.0)
    return (f"SANA-Video {variant} step, {size[0]} x {size[1]} x {size[2]} latents, batch 2", predicted,
            partial(model, x, time, context, mask), partial(model, small, time, context, mask))


def long_sana(blocks, dtype):
    """The prediction is that of one block and of what two leave behind, whatever their number."""
    size, params = (10, 16, 26), sana_video.SMALL
    tokens, heads, width = size[1] * size[2] // params.patch_size**2, params.num_attention_heads, params.attention_head_dim
    kept = params.num_layers * (heads * (width + 1) * width * 4 + tokens * params.width * dtype.itemsize)
    predicted = size[0] * size[1] * size[2] * numbers_of_sana_video(params, dtype.itemsize) * dtype.itemsize + 2 * kept
    return (f"LongSANA, {blocks} blocks of {size[0]} x {size[1]} x {size[2]} latents", predicted,
            sana_video.long_clip(blocks, dtype), sana_video.long_clip(1, dtype, 1, (4, 4)))


def dcae(way, pixels, dtype):
    model = AutoencoderDC(DCAE, dtype=dtype).to(memory_format=torch.channels_last)
    side = pixels // 32 if way == "decode" else pixels
    x = torch.randn(1, 32 if way == "decode" else 3, side, side, dtype=dtype)
    call = getattr(model, way)
    small = x[:, :, :2, :2] if way == "decode" else x[:, :, :64, :64]
    return (f"DC-AE {way}, {pixels} px", sana_memory.picture_bytes(128, pixels**2, dtype.itemsize, True),
            partial(call, x), partial(call, small))


def video_vae(way, frames, height, width, dtype):
    model = CogVideoVAE(VAE, dtype=dtype)
    unit, channels, length = (PIXELS, 16, (frames + 3) // 4) if way == "decode" else (1, 3, frames)
    x = torch.randn(1, channels, length, height // unit, width // unit, dtype=dtype)
    call, bytes_of = getattr(model, way), getattr(cogvideo_memory, f"{way}_bytes")
    predicted = bytes_of(VAE, x.shape, dtype.itemsize)
    if way == "encode":  # the clip is there before the call, so the measurement does not count it
        predicted -= x.numel() * dtype.itemsize
    return (f"CogVideoX VAE {way}, {frames} frames, {height} x {width} px", predicted, partial(call, x),
            partial(call, x[..., : 16 // unit, : 16 // unit]))


FP32 = {
    **{f"sana-{size}-{pixels}": partial(sana_step, size, pixels) for size in sana.SIZES for pixels in (512, 1024, 2048)},
    "cogvideo-2B": partial(cogvideo_step, "2B", 9, 320, 320),
    "cogvideo-5B-short": partial(cogvideo_step, "5B", 5, 320, 320),
    "cogvideo-5B": partial(cogvideo_step, "5B", 9, 320, 320),
    "cogvideo-1.5-5B": partial(cogvideo_step, "1.5-5B", 18, 320, 320),
    **{f"sana-video-{variant}": partial(sana_video_step, variant, size, layers) for variant, size, layers in (
        ("2B 480p", (9, 30, 52), 1), ("2B 720p", (5, 22, 40), 1), ("2.0 5B", (5, 22, 40), 8))},
    **{f"long-sana-{blocks}": partial(long_sana, blocks) for blocks in (2, 20)},
    **{f"dcae-{way}-{pixels}": partial(dcae, way, pixels) for way in ("decode", "encode") for pixels in (256, 512)},
    **{f"vae-{way}-{frames}": partial(video_vae, way, frames, *size) for way in ("decode", "encode")
       for frames, *size in ((1, 480, 720), (5, 96, 128), (9, 96, 128), (17, 96, 128))},
}
# The causal VAE is left out: a CPU's pooling over time knows no bf16.
BF16 = {name: case for name, case in FP32.items() if not name.startswith("vae-")}
CASES = {"float32": FP32, "bfloat16": BF16}


@torch.inference_mode()
def main(dtype, threads, names):
    """Print [name, predicted, measured] of each case as JSON."""
    if threads:
        torch.set_num_threads(threads)
    found = []
    for case in names:
        torch.manual_seed(0)
        name, predicted, call, warm_up = CASES[dtype][case](getattr(torch, dtype))
        warm_up()
        found.append((name, predicted, peak_memory(call)))
        del call, warm_up
    print(json.dumps(found))


def measured(dtype, names):
    """[name, predicted bytes, measured bytes or None] of each case, from a new process."""
    command = [sys.executable, __file__, dtype, str(torch.get_num_threads()), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"})
    if done.returncode:
        raise RuntimeError(f"measuring {', '.join(names)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def rows():
    """All cases in both dtypes, one after another -> rows."""
    for dtype, cases in CASES.items():
        for case in cases:
            (name, predicted, found), = measured(dtype, [case])
            yield {"name": f"{name}, {dtype}", "predicted": predicted, "measured": found,
                   "ratio": found and predicted / found, "conditions": record.conditions(dtype=dtype)}


def line(row):
    """One printed line."""
    if row["measured"] is None:
        return f"{row['name']:60s} {row['predicted'] / 2**20:7.0f} MiB predicted, cannot be measured here"
    far = "" if 1 / LIMIT < row["ratio"] < LIMIT else f"   further than {LIMIT}"
    return (f"{row['name']:60s} {row['predicted'] / 2**20:7.0f} MiB predicted, {row['measured'] / 2**20:7.0f} measured, "
            f"ratio {row['ratio']:.2f}{far}")


# --- whole runs, from shapes alone -----------------------------------------------------------------------------------

def weights(network, params, itemsize=2):
    """Bytes of a network's weights."""
    return sum(p.numel() for p in network(params, device="meta").parameters()) * itemsize


def gemma_2b():
    """Weights of Gemma-2-2B: table; attention of 8 heads and 4 pairs of keys and values, of 256; gated network; norms."""
    D, inner, layers = 2304, 9216, 26
    return 256000 * D + layers * (2 * D * 2048 + 2 * D * 1024 + 3 * D * inner + 4 * D) + D


def t5_xxl():
    """Weights of T5-XXL's encoder: table; attention of 64 heads of 64; gated network; norms; the table of distances."""
    D, inner, layers = 4096, 10240, 24
    return 32128 * D + layers * (4 * D * 4096 + 3 * D * inner + 2 * D) + D + 32 * 64


def totals():
    """(what, bytes of weights, bytes of activations with fused kernels or None) in bf16."""
    tile = Tiles()
    yield "Gemma-2-2B", gemma_2b() * 2, None
    yield "T5-XXL encoder", t5_xxl() * 2, None
    for size, pixels in (("0.6B", 1024), ("1.6B", 1024), ("1.6B", 4096)):
        yield (f"Sana {size} step, {pixels} px, batch 2", weights(SanaTransformer, sana.SIZES[size]),
               sana_step_bytes(size, pixels, 2, True))
    for pixels in (1024, 4096):
        yield (f"DC-AE decode, {pixels} px at once", weights(AutoencoderDC, DCAE),
               sana_memory.picture_bytes(128, pixels**2, 2, False))
    for variant, frames, height, width in (("2B", 13, 480, 720), ("5B", 13, 480, 720), ("1.5-5B", 22, 768, 1360)):
        shape = (2, 16, frames, height // PIXELS, width // PIXELS)
        params = cogvideox.VARIANTS[variant]
        yield (f"CogVideoX {variant} step, {4 * frames - 3} frames of {height} x {width} px, batch 2",
               weights(CogVideoTransformer, params), cogvideo_step_bytes(variant, shape, 2))
    for variant, size, side in (("2B 480p", (21, 60, 104), "81 frames of 480 x 832"), ("2B 720p", (11, 22, 40), "81 frames of 704 x 1280"),
                                ("2.0 5B", (11, 23, 40), "81 frames of 736 x 1280")):
        params = sana_video.VARIANTS[variant]
        yield (f"SANA-Video {variant} step, {side} px, batch 2", weights(network, params),
               2 * size[0] * size[1] * size[2] * numbers_of_sana_video(params, 2) * 2)
    for what, tiles in (("at once", None), (f"tiles of {tile.height * PIXELS} x {tile.width * PIXELS}", tile)):
        yield (f"CogVideoX VAE decode, 49 frames of 480 x 720 px, {what}", weights(CogVideoVAE, VAE),
               cogvideo_memory.decode_bytes(VAE, (1, 16, 13, 60, 90), 2, tiles))


def total_line(what, held, activations):
    """One printed line."""
    rest = "" if activations is None else f" + {activations / 2**30:5.2f} = {(held + activations) / 2**30:6.2f}"
    return f"{what:62s} {held / 2**30:6.2f}{rest} GiB"

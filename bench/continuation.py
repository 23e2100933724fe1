"""python run.py bench continuation: what becomes of colours when clips of the embedded CogVideoX are continued, and of the
seam of its loops.

This file is also the process of its own that does it, as bench/editing.py is.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.bench import continuation

    sys.exit(continuation.main(int(sys.argv[1])))

import json
import time

import numpy as np
import torch
import torch.nn.functional as F

from . import editing
from .accuracy import MODELS

COUNT, TIMES, STEPS, LENGTH, SIDE = 16, 4, 20, 9, 96
CFG = 2.0
WANTED = {"background": 0.02, "seam": 1.0}  # of a channel in [0, 1], mean over clips; of the largest change inside the loop
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}


class Studio(editing.Family):
    """The embedded CogVideoX models in the host. The shape turns back with each stretch, for the world ends with the
    picture."""

    def __init__(self):
        super().__init__("cogvideox")
        from ..host.cogvideox import continuation, loop, model

        self.continuation, self.loop, self.empty = continuation, loop, model.empty_latent
        self.models = {"text to video": self.model,
                       "image to video": model.load_cogvideox(
                           MODELS / "diffusion_models/sanacog_tiny_cogvideox_i2v.safetensors")}
        self.scenes = self.world.evaluation_scenes()[0][::3][:COUNT]

    def sampled(self, model, positive, negative, latent, seed):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(CFG)
        return guider.sample(editing.fresh(latent["samples"], seed), latent["samples"], editing.euler(),
                             self.sigmas_of(model, STEPS), latent.get("noise_mask"), disable_pbar=True, seed=seed)

    def turned_back(self, scene):
        directions, turned = self.world.DIRECTIONS, scene.clone()
        turned[-1] = directions.index(BACK[directions[int(scene[-1])]])
        return turned


def background(frames):
    """Mean colour (3,) of frames (T, H, W, 3) where the judge sees no shape, nor the cell next to one."""
    from ..evaluation.drawn.judge import GRID, shape_mask

    cells = F.adaptive_avg_pool2d(frames.movedim(-1, 1), GRID).movedim(1, -1).numpy()
    masks = np.stack([shape_mask(frame) for frame in frames.numpy()])
    near = F.max_pool2d(torch.from_numpy(masks)[:, None].float(), 5, 1, 2)[:, 0].numpy()
    return cells[near < 0.01].mean(0)


def continued(studio, kind, i, overlap, hold):
    """(distances of the background from the first stretch's after each continuation, mean of the channels; whether the last
    one shows shape and background in the prompt's colours; change at the seams as a share of the median change)"""
    model, scene = studio.models[kind], studio.scenes[i]
    negative = studio.text("")
    start = studio.sampled(studio.model, studio.text(studio.prompt(scene)), negative, studio.empty(SIDE, SIDE, LENGTH), i)
    video = studio.vae.decode(start)[0].clamp(0, 1)
    first, away, seams = background(video), [], []
    for k in range(TIMES):
        scene = studio.turned_back(scene)
        positive, empty, latent = studio.continuation.continued(
            model, studio.text(studio.prompt(scene)), negative, studio.vae, video, LENGTH, overlap)
        second = studio.vae.decode(studio.sampled(model, positive, empty, latent, 100 * (k + 1) + i))[0].clamp(0, 1)
        seam = len(video) - overlap - 1
        video = studio.continuation.joined(video, second, overlap, hold)
        away.append(float(np.abs(background(video[-(LENGTH - overlap):]) - first).mean()))
        change = (video[1:] - video[:-1]).abs().mean((1, 2, 3))
        seams.append(float(change[seam:seam + overlap + 1].max() / change.median()))
    last = studio.agreement([video[-(LENGTH - overlap):].numpy()], scene[None])
    return away, bool(last["colour"][0] and last["background"][0]), float(np.mean(seams))


def looped(studio, i, whole):
    """(change at the seam, largest change inside, whether colours are the prompt's) of a loop, or of a clip that is decoded
    as one."""
    model = studio.loop.looping(studio.model, 1) if whole else studio.model
    latent = studio.sampled(model, studio.text(studio.prompt(studio.scenes[i])), studio.text(""),
                            studio.empty(SIDE, SIDE, LENGTH), i)
    frames = studio.loop.decode_circle(studio.vae, latent, 0, 0).clamp(0, 1)
    change = (frames.roll(-1, 0) - frames).abs().mean((1, 2, 3))
    seen = studio.agreement([frames.numpy()], studio.scenes[i:i + 1])
    return float(change[-1]), float(change[:-1].max()), bool(seen["colour"][0] and seen["background"][0])


@torch.inference_mode()  # as the host runs its nodes
def main(threads):
    editing.start_host(threads)
    start, studio, found = time.perf_counter(), Studio(), {}
    for kind in studio.models:
        for hold in (1.0, 0.0):
            away, right, seams = zip(*(continued(studio, kind, i, 1, hold) for i in range(COUNT)))
            away = np.array(away)
            found[f"{kind}, {'colours held' if hold else 'as it comes'}"] = {
                **{f"after {k + 1}": round(float(away[:, k].mean()), 4) for k in range(TIMES)},
                "worst": round(float(away[:, -1].max()), 4), "colours": round(float(np.mean(right)), 3),
                "seam": round(float(np.mean(seams)), 2)}
    for name, whole in (("loop", True), ("a clip that is none", False)):
        seam, inside, right = (np.array(part) for part in zip(*(looped(studio, i, whole) for i in range(COUNT))))
        found[name] = {"seam": round(float(seam.mean()), 4), "largest inside": round(float(inside.mean()), 4),
                       "seam the smaller": round(float((seam <= inside).mean()), 3),
                       "colours": round(float(right.mean()), 3)}
    print(json.dumps({"continued": {k: v for k, v in found.items() if "after 1" in v}, "loops": {
        k: v for k, v in found.items() if "after 1" not in v}, "wanted": WANTED, "count": COUNT, "steps": STEPS,
        "overlap": 1, "seconds": round(time.perf_counter() - start, 1)}))


def figures():
    """{"continued": {model and way: {after n: distance of the background's mean colour, worst, colours: share that shows the
    prompt's, seam}}, "loops": {...}, "wanted": {...}, "seconds": float}. Raises RuntimeError with the process's last
    line."""
    return editing.by_itself(__file__)

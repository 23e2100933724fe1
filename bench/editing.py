"""Inversion and editing on the embedded models, in ComfyUI's own sampling: how near the source comes back, and whether an
edit with one word replaced keeps the rest. Drawn clips and pictures of held-out scenes, judged from pixels.

As a script (python bench/editing.py 2: threads) it computes in this very process, in fp32, and prints the figures as JSON.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.bench import editing

    sys.exit(editing.main(int(sys.argv[1])))

import functools
import json
import math
import subprocess
import sys
import time

import numpy as np
import torch

from ..headless import installation
from .accuracy import MODELS

COUNT = 32
STEPS = {"cogvideox": 25, "sana": 20}
WANTED = {"cogvideox": {"fixed point": 45.0, "edict": 80.0}, "sana": {"fixed point": 54.0, "edict": 80.0},  # dB
          "colour": 0.9, "direction": 1.0, "distance": 3.5}  # shares; px of 96
METHODS = {"cogvideox": ("plain", "fixed point", "edict"), "sana": ("plain", "fixed point", "midpoint", "edict", "rf")}


class Family:
    """The embedded models of a family in the host, and their world. Everything is made in one process and in fp32."""

    def __init__(self, name: str):
        self.name = name
        folder = MODELS
        if name == "cogvideox":
            from ..host.cogvideox import model, text, vae
            from ..host.samplers import cogvideox_sigmas
            from ..evaluation.drawn import clip_judge, clips

            self.model = model.load_cogvideox(folder / "diffusion_models/sanacog_tiny_cogvideox.safetensors")
            self.clip = text.load_t5(folder / "text_encoders/sanacog_tiny_t5.safetensors")
            self.vae = vae.load_cogvideox_vae(folder / "vae/sanacog_tiny_cogvideox_vae.safetensors")
            self.world, self.sigmas_of, self.cfg = clips, cogvideox_sigmas, 3.0
            self.agreement = clip_judge.agreement
        else:
            from ..host.sana import model, text, vae
            from ..host.sana.sampling import sana_sigmas
            from ..evaluation.drawn import judge, shapes

            self.model = model.load_sana(folder / "diffusion_models/sanacog_tiny_sana.safetensors")
            self.clip = text.load_text_encoder(folder / "text_encoders/sanacog_tiny_gemma2.safetensors")
            self.vae = vae.load_dcae(folder / "vae/sanacog_tiny_dcae.safetensors")
            self.world, self.sigmas_of, self.cfg = shapes, sana_sigmas, 4.5
            self.agreement = judge.agreement
        self.scenes = self.world.evaluation_scenes()[0][:COUNT]

    def sources(self, scenes=None):
        """(latents, pixels of what the autoencoder makes of them) of the drawn scenes, one by one. scenes: others, which
        differ in colours alone: drawn at the same places."""
        generator = torch.Generator().manual_seed(32)
        drawn = self.world.draw(self.scenes if scenes is None else scenes, generator)  # (B, 3, [T,] H, W) in [-1, 1]
        pixels = (drawn.movedim(1, -1) + 1) / 2
        latents = [self.vae.encode(one if self.name == "cogvideox" else one[None]) for one in pixels]
        return latents, [self.vae.decode(latent) for latent in latents]

    def prompt(self, scene):
        return self.world.plain_prompt(scene)

    def text(self, prompt):
        """CONDITIONING, as CLIP Text Encode gives it."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))

    def guider(self, prompt, cfg):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.text(prompt), self.text(""))
        guider.set_cfg(cfg)
        return guider

    def sigmas(self):
        return self.sigmas_of(self.model, STEPS[self.name])


def euler():
    import comfy.samplers

    return comfy.samplers.ksampler("euler")


def samplers(method):
    """(to noise, back) of an inversion."""
    from ..host.editing import inversion

    if method == "rf":
        return inversion.rf_inversion(0.5, 0), inversion.rf_sampler(0.9, 0.5)
    there = inversion.inversion(method, 3, 0.0)
    return there, inversion.way_back(method) if method in inversion.WAYS_BACK else euler()


def inverted(family, latent, prompt, method, cfg=1.0):
    return family.guider(prompt, cfg).sample(torch.zeros_like(latent), latent, samplers(method)[0], family.sigmas(), seed=0,
                                             disable_pbar=True)


def psnr(pixels, wanted):
    return -10.0 * math.log10(max(1e-12, float(((pixels - wanted).double() ** 2).mean())))


def inversion_figures(family, count=COUNT):
    """{method, CFG: {psnr: mean in dB of what comes back to what the autoencoder makes of the source, std: of the noise}}"""
    latents, wanted = family.sources()
    found = {}
    for method in METHODS[family.name]:
        for cfg in (1.0, family.cfg) if method in ("fixed point", "edict") else (1.0,):
            rows = []
            for i in range(count):
                prompt = family.prompt(family.scenes[i])
                noise = inverted(family, latents[i], prompt, method, cfg)
                back = family.guider(prompt, cfg).sample(noise, latents[i], samplers(method)[1], family.sigmas(), seed=0,
                                                         disable_pbar=True)
                rows.append((psnr(family.vae.decode(back), wanted[i]), float(noise.std())))
            name = method if cfg == 1.0 else f"{method}, CFG {cfg:g}"
            found[name] = {"psnr": round(float(np.mean([row[0] for row in rows])), 1),
                           "worst": round(min(row[0] for row in rows), 1),
                           "std": round(float(np.mean([row[1] for row in rows])), 2)}
    return found


# --- edits ---


def edited_scenes(family, word):
    """The scenes with that attribute replaced, by the next colour that neither shape nor background has."""
    attributes = family.world.ATTRIBUTES
    colour, background, at = attributes.index("colour"), attributes.index("background"), attributes.index(word)
    edited = family.scenes.clone()
    for scene in edited:
        taken = {int(scene[colour]), int(scene[background])}
        scene[at] = next(n % len(family.world.COLOURS) for n in range(int(scene[at]) + 1, 99)
                         if n % len(family.world.COLOURS) not in taken)
    return edited


def plainly(family, model, prompt, cfg, noise, latent, sigmas=None):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(family.text(prompt), family.text(""))
    guider.set_cfg(cfg)
    return guider.sample(noise, latent, euler(), family.sigmas() if sigmas is None else sigmas, seed=0, disable_pbar=True)


def fresh(latent, i):
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(i))


def by_fresh_noise(family, latent, i, source, target):
    return plainly(family, family.model, target, family.cfg, fresh(latent, i), torch.zeros_like(latent))


def by_inversion(family, latent, i, source, target, cfg=None):
    return plainly(family, family.model, target, cfg or family.cfg, inverted(family, latent, source, "fixed point"), latent)


def by_structure(family, latent, i, source, target, noise=None, start=0.0, end=1.0, cfg=None):
    from ..host.editing.structure import keep_structure

    noise = fresh(latent, i) if noise is None else noise
    return plainly(family, keep_structure(family.model, start, end), target, cfg or family.cfg, noise, latent)


def by_inverted_structure(family, latent, i, source, target, **options):
    return by_structure(family, latent, i, source, target, inverted(family, latent, source, "fixed point"), **options)


def by_flow_edit(family, latent, i, source, target, **options):
    from ..host.editing.flow_edit import FlowEdit

    empty = family.text("")
    guider = FlowEdit(family.model, (family.text(source), empty), (family.text(target), empty), **options)
    return guider.sample(fresh(latent, i), latent, euler(), family.sigmas(), seed=i, disable_pbar=True)


EDITS = {
    "fresh noise": by_fresh_noise,
    "inversion": by_inversion,
    "fresh noise, Keep Structure": by_structure,
    "inversion, Keep Structure, CFG 2": functools.partial(by_inverted_structure, cfg=2.0),
    "FlowEdit": by_flow_edit,
    "FlowEdit, target CFG 1.5, skip 3": functools.partial(by_flow_edit, target_cfg=1.5, skip=3),
    # These two were chosen for CogVideoX on other clips: 48 of the 16 held-out scenes that are not measured here.
    "inversion, Keep Structure to 0.9, CFG 1.5": functools.partial(by_inverted_structure, cfg=1.5, end=0.9),
    "FlowEdit, target CFG 1.25, skip 5": functools.partial(by_flow_edit, target_cfg=1.25, skip=5),
}
DRAWN = "the target drawn"  # at the source's place, through the autoencoder: no edit can be nearer


def edit_figures(family, word, edits=EDITS, count=COUNT):
    """{edit, or DRAWN: {attribute: share of the results that show the target scene's; distance: of the shape's centre from
    the source's, mean over pictures, in px}}"""
    latents, sources = family.sources()
    targets = edited_scenes(family, word)

    def edited(edit):
        return [family.vae.decode(edit(family, latents[i], i, family.prompt(family.scenes[i]), family.prompt(targets[i])))
                for i in range(count)]

    found = {}
    for name in (DRAWN, *edits):
        results = family.sources(targets)[1][:count] if name == DRAWN else edited(edits[name])
        results = [pixels.clamp(0, 1).numpy() for pixels in results]
        pictures = [one[0] for one in results]
        shares = {key: round(float(np.mean(seen)), 3) for key, seen in family.agreement(pictures, targets[:count]).items()}
        far = [distance(one, wanted.numpy()) for one, wanted in zip(results, sources)]
        found[name] = shares | {"distance": round(float(np.nanmean(far)), 2)}
    return found


def distance(frames, sources):
    """Mean distance in pixels between the shape's centres of frames and sources (1, [T,] H, W, 3); NaN where none is."""
    from ..evaluation.drawn.judge import judge

    frames, sources = (one.reshape(-1, *one.shape[-3:]) for one in (frames, sources))
    centres = [(judge(a).centre, judge(b).centre) for a, b in zip(frames, sources)]
    apart = [math.hypot(a[0] - b[0], a[1] - b[1]) * frames.shape[2] for a, b in centres if a is not None and b is not None]
    return float(np.mean(apart)) if apart else math.nan


# --- as figures of the command ---


def start_host(threads):
    """The host's modules in this process, its networks in fp32."""
    from ..host import process

    torch.set_num_threads(threads)
    process.start(installation.host())
    import comfy.cli_args

    comfy.cli_args.args.fp32_unet = comfy.cli_args.args.fp32_text_enc = True


@torch.inference_mode()  # as the host runs its nodes
def main(threads):
    start_host(threads)
    start, found = time.perf_counter(), {}
    for name, words in (("cogvideox", ("colour",)), ("sana", ("colour", "background"))):
        family = Family(name)
        found[f"{name}, inversion"] = inversion_figures(family)
        for word in words:
            found[f"{name}, edits of {word}"] = edit_figures(family, word)
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps(found | {"wanted": WANTED, "count": COUNT, "steps": STEPS, "seconds": seconds}))


def figures():
    """{"cogvideox, inversion": {method: {psnr, worst (dB), std}}, "cogvideox, edits of colour": {edit: {attribute: share,
    distance}}, the same of Sana, "wanted": {...}, "seconds": float}. Raises RuntimeError with the process's last line."""
    return by_itself(__file__)


def by_itself(file):
    """What a file of ours prints at last as JSON, run with this process's number of threads. Raises RuntimeError
    with its last line."""
    done = subprocess.run([sys.executable, file, str(torch.get_num_threads())], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def lines(found):
    """The figures as a table to print."""
    for name, rows in found.items():
        if isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
            yield name
            for row, values in rows.items():
                yield f"    {row:44s}" + "  ".join(f"{key} {value:g}" for key, value in values.items())

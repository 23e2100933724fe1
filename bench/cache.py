"""Step Cache: evaluations reused, time and distance to the full result, in ComfyUI's own sampling on the embedded models
and on a larger CogVideoX and Sana of random weights. Beside it diffusers' first-block cache, which knows CogVideoX.

As a script (python bench/cache.py 1: threads) it computes in this very process, in fp32, and prints the figures as JSON.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.bench import cache

    sys.exit(cache.main(int(sys.argv[1])))

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from ..headless import installation
from . import sides
from .editing import STEPS, Family, fresh, plainly, psnr

COUNT = 6
THRESHOLDS = {"first block": (0.05, 0.1, 0.2), "TeaCache": (0.1, 0.2, 0.3)}
PAIRS = 3
LARGER_STEPS = 8


def seconds(call):
    """(what it gives, time): the process's own where it has one thread, for machines with other work."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = call()
    return result, clock() - start


def cached(model, method, threshold, most=3):
    """MODEL with a Step Cache, and a call that tells (reused, evaluations) of its last run."""
    from comfy.patcher_extension import WrappersMP

    from ..host import step_cache

    runs = []
    patched = step_cache.step_cache(model, method, threshold, most=most)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "bench", lambda executor, *args, **kwargs: (
        runs.append(executor.class_obj.model_options["transformer_options"][step_cache.KEY]) or executor(*args, **kwargs)))
    return patched, lambda: (runs[-1].reused, runs[-1].evaluations)


def row(results):
    """results: (dB, time beside the full run's, reused, evaluations) of each run -> the figures of a row."""
    distances, ratios, reused, evaluations = zip(*results)
    return {"reused": round(sum(reused) / sum(evaluations), 3), "time": round(statistics.median(ratios), 3),
            "psnr": round(statistics.fmean(distances), 1), "worst": round(min(distances), 1)}


def embedded(family, count=COUNT):
    """{method, threshold: row} of the family's embedded model, guided, as the editing figures sample it."""
    empty = torch.zeros(family.sources()[0][0].shape)
    prompts = [family.prompt(family.scenes[i]) for i in range(count)]

    def draw(model, i):
        return seconds(lambda: plainly(family, model, prompts[i], family.cfg, fresh(empty, i), empty))

    draw(family.model, 0)
    found = {}
    for method, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            model, told = cached(family.model, method, threshold)
            results = []
            for i in range(count):
                (full, whole), (fast, part) = draw(family.model, i), draw(model, i)
                results.append((psnr(family.vae.decode(fast), family.vae.decode(full)), part / whole, *told()))
            found[f"{method}, {threshold:g}"] = row(results)
    return found


def diffusers_first_block(family, count=COUNT):
    """{first block, threshold: row} of diffusers' cache on the embedded CogVideoX, guided in a batch of two, by Euler."""
    from diffusers import FirstBlockCacheConfig

    from . import cogvideox

    network = family.model.model.diffusion_model
    theirs = cogvideox.diffusers_transformer(network.params, "cpu").eval()
    theirs.load_state_dict(network.state_dict())
    theirs.norm_out.norm.eps = network.norm_out.norm.eps
    calls = []
    theirs.transformer_blocks[1].attn1.register_forward_pre_hook(lambda *_: calls.append(1))
    shape, sampling, sigmas = family.sources()[0][0].shape, family.model.get_model_object("model_sampling"), family.sigmas()
    rope = cogvideox.rotary(network.params, shape, "cpu")
    empty = family.text("")[0][0]

    def sample(i):
        states = torch.cat([family.text(family.prompt(family.scenes[i]))[0][0], empty])
        x = sampling.noise_scaling(sigmas[0], fresh(torch.empty(shape), i), torch.zeros(shape), True)
        for sigma, after in zip(sigmas[:-1], sigmas[1:]):
            given = sampling.calculate_input(sigma[None], x).expand(2, *x.shape[1:]).transpose(1, 2)
            with theirs.cache_context("both"):
                v = theirs(given, states, sampling.timestep(sigma[None]).float().expand(2), image_rotary_emb=rope).sample
            c, u = sampling.calculate_denoised(sigma[None], v.transpose(1, 2), x).chunk(2)
            x = x + (x - (u + family.cfg * (c - u))) / sigma * (after - sigma)
        return family.model.model.process_latent_out(x)

    found = {}
    with torch.inference_mode(False), torch.no_grad():
        for threshold in THRESHOLDS["first block"]:
            results = []
            for i in range(count):
                full, whole = seconds(lambda: sample(i))
                theirs.enable_cache(FirstBlockCacheConfig(threshold=threshold))
                calls.clear()
                fast, part = seconds(lambda: sample(i))
                results.append((psnr(family.vae.decode(fast), family.vae.decode(full)), part / whole,
                                len(sigmas) - 1 - len(calls), len(sigmas) - 1))
                theirs.disable_cache()
            found[f"first block, {threshold:g}"] = row(results)
    return found


# --- larger networks, for the time alone ---


def larger(name, params, network, load, shape, text):
    """{method: {reused, time: beside the full run, per_reused: what a reused evaluation costs beside a computed one}}:
    every second evaluation of a network of random weights reused, without guidance.

    network: a core's class. load(path) -> MODEL. shape: of the latent. text: of the states.
    """
    import comfy.samplers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = {key: torch.randn(tensor.shape) * 0.02 for key, tensor in network(params, device="meta").state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, Path(folder) / f"{name}.safetensors", metadata={"config": json.dumps(asdict(params))})
        del weights
        model = load(Path(folder) / f"{name}.safetensors")
    noise, sampling = torch.randn(shape), model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "sgm_uniform", LARGER_STEPS)

    def draw(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(text, text)
        guider.set_cfg(1.0)
        return seconds(lambda: guider.sample(noise, torch.zeros(shape), comfy.samplers.ksampler("euler"), sigmas, seed=0,
                                             disable_pbar=True))[1]

    draw(model)
    found = {}
    for method in THRESHOLDS:
        patched, told = cached(model, method, 1e9, most=1)
        ratios = [draw(patched) / draw(model) for _ in range(PAIRS)]
        share = told()[0] / told()[1]
        time_ratio = statistics.median(ratios)
        found[method] = {"reused": round(share, 3), "time": round(time_ratio, 3),
                         "per_reused": round(1 - (1 - time_ratio) / share, 3)}
    return found


def larger_cogvideox():
    from ..cogvideo_core.config import CogVideoParams
    from ..cogvideo_core.transformer import CogVideoTransformer
    from ..host.cogvideox.model import load_cogvideox

    params = CogVideoParams(num_layers=12, num_attention_heads=12, text_embed_dim=512)
    return larger("cogvideox", params, CogVideoTransformer, load_cogvideox, (1, 16, 3, 16, 24),
                  [[torch.randn(1, 226, 512), {}]])


def larger_sana():
    from ..host.sana.model import load_sana
    from ..sana_core.config import SanaParams
    from ..sana_core.transformer import SanaTransformer

    params = SanaParams(num_layers=8, num_attention_heads=36, num_cross_attention_heads=16, cross_attention_head_dim=72)
    states, mask = torch.randn(1, 300, 2304), torch.zeros(1, 300, dtype=torch.long)
    mask[:, :120] = 1
    return larger("sana", params, SanaTransformer, load_sana, (1, 32, 16, 16),
                  [[states, {"attention_mask": mask, "sana_text": True}]])


# --- as figures of the command ---


@torch.inference_mode()  # as the host runs its nodes
def main(threads):
    from ..host import process

    torch.set_num_threads(threads)
    process.start(installation.host())
    import comfy.cli_args

    comfy.cli_args.args.fp32_unet = comfy.cli_args.args.fp32_text_enc = True
    start, found = time.perf_counter(), {}
    for name in ("cogvideox", "sana"):
        family = Family(name)
        found[f"{name}, embedded"] = embedded(family)
        if name == "cogvideox" and sides.DIFFUSERS:
            found[f"{name}, embedded, diffusers"] = diffusers_first_block(family)
    found["cogvideox, 12 blocks of 768"], found["sana, 8 blocks of 1152"] = larger_cogvideox(), larger_sana()
    print(json.dumps(found | {"count": COUNT, "steps": STEPS, "seconds": round(time.perf_counter() - start, 1)}))


def figures():
    """{"cogvideox, embedded": {"method, threshold": {reused: share of the evaluations, time: beside the full run's, psnr
    and worst: to the full run's pixels, dB}}, ..., "seconds": float}. Raises RuntimeError with the process's last line."""
    done = subprocess.run([sys.executable, __file__, str(torch.get_num_threads())], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return json.loads(done.stdout.splitlines()[-1])

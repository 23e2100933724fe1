"""What stock nodes make of CogVideoX's latents, masks and conditionings, beside what they should: a case a row of
docs/latent_nodes_cogvideox.md.

A case is a function of a `Bench` that returns (what it gives, what it should give), or those and what would be there
without the node; two tensors each.
"""

import importlib
from types import SimpleNamespace

import torch

from .video_model import VARIANTS, noise, random, sample, text

CASES = {}


class NotThere(Exception):
    """This ComfyUI has no such node or input."""


A, B = text(), text(2)
LATENT = random(1, 16, 3, 8, 12, seed=11)
OTHER = random(1, 16, 3, 8, 12, seed=12)
SMALL = random(1, 16, 3, 4, 6, seed=13)


def case(name):
    def keep(function):
        CASES[name] = function
        return function
    return keep


class Bench(SimpleNamespace):
    """host, weights: the fixtures."""

    def model(self, name="5B"):
        return self.host.cogvideox.load_cogvideox(self.weights(VARIANTS[name]))

    def step(self, model=None, positive=A, start=None, cfg=1.0, **kwargs):
        return sample(self.host, model or self.model(), noise(batch=2) if start is None else start, steps=1, cfg=cfg,
                      positive=positive, **kwargs)


def latent(samples):
    return {"samples": samples.clone()}


def outputs(name, *arguments, module="nodes", **keywords) -> tuple:
    """What a node of the host gives. Raises NotThere."""
    importlib.import_module("comfy_extras.nodes_post_processing")  # newer hosts' nodes_latent can only come after it
    try:
        place = importlib.import_module(module if module == "nodes" else f"comfy_extras.{module}")
    except ModuleNotFoundError as error:
        raise NotThere(name) from error
    cls = getattr(place, name, None)
    if cls is None:
        raise NotThere(name)
    if hasattr(cls, "define_schema"):
        out = cls.execute(*arguments, **keywords)
        return getattr(out, "result", out)  # a node may return a bare tuple, too
    return getattr(cls(), cls.FUNCTION)(*arguments, **keywords)


def output(name, *arguments, **keywords):
    return outputs(name, *arguments, **keywords)[0]


def run(name, *arguments, **keywords):
    """Samples that a node gives."""
    return output(name, *arguments, **keywords)["samples"]


LATENTS, MASKS, POST = "nodes_latent", "nodes_mask", "nodes_post_processing"


# Empty latents

@case("EmptyHunyuanLatentVideo")
def _(bench):
    return 1 + run("EmptyHunyuanLatentVideo", 96, 64, 9, 2, module="nodes_hunyuan"), torch.ones(2, 16, 3, 8, 12)


def in_ksampler(bench, given):
    out = output("KSampler", bench.model(), 5, 2, 3.0, "euler", "simple", A, text(1), given, 1.0)
    return out["samples"]


@case("EmptyLatentImage")
def _(bench):
    """One frame of the given size."""
    given = output("EmptyLatentImage", 96, 64, 1)
    return torch.tensor(in_ksampler(bench, given).shape), torch.tensor([1, 16, 1, 8, 12])


@case("EmptySD3LatentImage")
def _(bench):
    given = output("EmptySD3LatentImage", 96, 64, 1, module="nodes_sd3")
    return torch.tensor(in_ksampler(bench, given).shape), torch.tensor([1, 16, 1, 8, 12])


# Geometry

@case("LatentFlip")
def _(bench):
    return run("LatentFlip", latent(LATENT), "x-axis: vertically"), LATENT.flip(-2)


@case("LatentRotate")
def _(bench):
    return run("LatentRotate", latent(LATENT), "90 degrees"), LATENT.rot90(1, [-1, -2])


@case("LatentCrop")
def _(bench):
    return run("LatentCrop", latent(LATENT), 64, 32, 8, 16), LATENT[..., 2:6, 1:9]


@case("LatentCut, x and y")
def _(bench):
    half = latent(along_time("LatentCut", latent(LATENT), "x", 1, 8))
    return along_time("LatentCut", half, "y", 2, 4), LATENT[..., 2:6, 1:9]


@case("LatentUpscale")
def _(bench):
    wanted = torch.nn.functional.interpolate(LATENT, (3, 16, 24), mode="nearest")
    return run("LatentUpscale", latent(LATENT), "nearest-exact", 192, 128, "disabled"), wanted


@case("LatentUpscaleBy")
def _(bench):
    wanted = torch.nn.functional.interpolate(LATENT, (3, 16, 24), mode="nearest")
    return run("LatentUpscaleBy", latent(LATENT), "nearest-exact", 2.0), wanted


def pasted():
    wanted = LATENT.clone()
    wanted[..., 2:6, 3:9] = SMALL
    return wanted


@case("LatentComposite")
def _(bench):
    return run("LatentComposite", latent(LATENT), latent(SMALL), 24, 16), pasted()


@case("LatentCompositeMasked, without a mask, landscape")
def _(bench):
    return run("LatentCompositeMasked", latent(LATENT), latent(SMALL), 24, 16, False, module=MASKS), pasted()


@case("LatentCompositeMasked, without a mask, portrait")
def _(bench):
    tall, small = LATENT.transpose(-1, -2).contiguous(), SMALL.transpose(-1, -2).contiguous()
    wanted = tall.clone()
    wanted[..., 3:9, 2:6] = small
    return run("LatentCompositeMasked", latent(tall), latent(small), 16, 24, False, module=MASKS), wanted


@case("LatentCompositeMasked, with a mask")
def _(bench):
    mask = torch.zeros(1, 4, 6)
    mask[..., :3] = 1.0
    wanted = LATENT.clone()
    wanted[..., 2:6, 3:6] = SMALL[..., :3]
    return run("LatentCompositeMasked", latent(LATENT), latent(SMALL), 24, 16, False, mask, module=MASKS), wanted


@case("LatentCompositeMasked, resize_source")
def _(bench):
    wanted = torch.nn.functional.interpolate(SMALL, (3, 8, 12), mode="trilinear")
    return run("LatentCompositeMasked", latent(LATENT), latent(SMALL), 0, 0, True, module=MASKS), wanted


# Along time

def along_time(name, *arguments):
    return run(name, *arguments, module=LATENTS)


@case("LatentConcat, t")
def _(bench):
    return along_time("LatentConcat", latent(LATENT), latent(OTHER), "t"), torch.cat([LATENT, OTHER], 2)


@case("LatentCut, t")
def _(bench):
    return along_time("LatentCut", latent(LATENT), "t", 1, 2), LATENT[:, :, 1:]


@case("LatentCutToBatch, t")
def _(bench):
    four = torch.cat([LATENT, OTHER[:, :, :1]], 2)
    return along_time("LatentCutToBatch", latent(four), "t", 2), torch.cat([four[:, :, :2], four[:, :, 2:]])


@case("TrimVideoLatent")
def _(bench):
    return run("TrimVideoLatent", latent(LATENT), 1, module="nodes_wan"), LATENT[:, :, 1:]


@case("ReplaceVideoLatentFrames")
def _(bench):
    wanted = torch.cat([LATENT[:, :, :2], OTHER[:, :, :1]], 2)
    return run("ReplaceVideoLatentFrames", latent(LATENT), 2, latent(OTHER[:, :, :1]), module=LATENTS), wanted


# Batches

@case("LatentBatch")
def _(bench):
    return along_time("LatentBatch", latent(LATENT), latent(OTHER)), torch.cat([LATENT, OTHER])


@case("LatentBatch, of another size")
def _(bench):
    wanted = torch.cat([LATENT, torch.nn.functional.interpolate(SMALL, (3, 8, 12), mode="trilinear")])
    return along_time("LatentBatch", latent(LATENT), latent(SMALL)), wanted


@case("RepeatLatentBatch")
def _(bench):
    return run("RepeatLatentBatch", latent(LATENT), 3), LATENT.repeat(3, 1, 1, 1, 1)


@case("LatentFromBatch")
def _(bench):
    return run("LatentFromBatch", latent(torch.cat([LATENT, OTHER])), 1, 1), OTHER


@case("LatentBatchSeedBehavior")
def _(bench):
    out = output("LatentBatchSeedBehavior", latent(torch.cat([LATENT, OTHER])), "fixed", module=LATENTS)
    import comfy.sample

    drawn = comfy.sample.prepare_noise(out["samples"], 5, out.get("batch_index"))
    return drawn[1:], drawn[:1]


@case("RebatchLatents")
def _(bench):
    [first, second] = output("LatentRebatch", [latent(torch.cat([LATENT, OTHER]))], [1], module="nodes_rebatch")
    assert "noise_mask" not in first
    return torch.cat([first["samples"], second["samples"]]), torch.cat([LATENT, OTHER])


@case("RebatchLatents, with a noise mask")
def _(bench):
    masked = output("SetLatentNoiseMask", latent(torch.cat([LATENT, OTHER])), torch.eye(3)[:, None, :1].expand(3, 64, 96))
    [_, second] = output("LatentRebatch", [masked], [1], module="nodes_rebatch")
    return second["noise_mask"], masked["noise_mask"]


# Numbers

@case("LatentAdd")
def _(bench):
    return along_time("LatentAdd", latent(LATENT), latent(OTHER)), LATENT + OTHER


@case("LatentAdd, of another size")
def _(bench):
    wanted = LATENT + torch.nn.functional.interpolate(SMALL, (3, 8, 12), mode="trilinear")
    return along_time("LatentAdd", latent(LATENT), latent(SMALL)), wanted


@case("LatentSubtract")
def _(bench):
    return along_time("LatentSubtract", latent(LATENT), latent(OTHER)), LATENT - OTHER


@case("LatentMultiply")
def _(bench):
    return along_time("LatentMultiply", latent(LATENT), 0.5), LATENT * 0.5


@case("LatentInterpolate")
def _(bench):
    size = [t.norm(dim=1, keepdim=True) for t in (LATENT, OTHER)]
    mixed = 0.25 * LATENT / size[0] + 0.75 * OTHER / size[1]
    wanted = mixed / mixed.norm(dim=1, keepdim=True) * (0.25 * size[0] + 0.75 * size[1])
    return along_time("LatentInterpolate", latent(LATENT), latent(OTHER), 0.25), wanted


@case("LatentBlend")
def _(bench):
    return run("LatentBlend", latent(LATENT), latent(OTHER), 0.25), 0.25 * LATENT + 0.75 * OTHER


def operated(name, *arguments):
    operation = output(name, *arguments, module=LATENTS)
    return run("LatentApplyOperation", latent(LATENT), operation, module=LATENTS), operation


@case("LatentOperationTonemapReinhard")
def _(bench):
    """Of a video of one frame it is what it is of a picture."""
    given, operation = operated("LatentOperationTonemapReinhard", 1.0)
    clip = operation(latent=LATENT[:, :, :1])
    return clip, operation(latent=LATENT[:, :, 0])[:, :, None], given


@case("LatentOperationSharpen")
def _(bench):
    given, operation = operated("LatentOperationSharpen", 2, 1.0, 0.5)
    return given, torch.stack([operation(latent=LATENT[:, :, i]) for i in range(3)], dim=2)


# Noise masks

def masked(bench, mask):
    """A run that draws where the mask is 1, and one without it."""
    model, start = bench.model(), noise()
    given = output("SetLatentNoiseMask", latent(SMALL), mask)
    sigmas = bench.host.samplers.cogvideox_sigmas(model, 2)
    out, plain = (sample(bench.host, model, start, SMALL, sigmas=sigmas, mask=one) for one in (given["noise_mask"], None))
    return out, plain


@case("SetLatentNoiseMask, one mask")
def _(bench):
    mask = torch.zeros(1, 32, 48)
    mask[..., 24:] = 1.0
    out, plain = masked(bench, mask)
    return out[..., :3], SMALL[..., :3], plain[..., :3]


@case("SetLatentNoiseMask, a mask for each latent frame")
def _(bench):
    mask = torch.zeros(3, 32, 48)
    mask[1] = 1.0
    out, plain = masked(bench, mask)
    return out[:, :, [0, 2]], SMALL[:, :, [0, 2]], plain[:, :, [0, 2]]


@case("SetLatentNoiseMask, a mask for each frame")
def _(bench):
    mask = torch.ones(9, 32, 48)
    mask[0] = 0.0  # the first frame has a latent of its own
    out, _ = masked(bench, mask)
    return out[:, :, :1], SMALL[:, :, :1]


@case("InpaintModelConditioning")
def _(bench):
    """On a Fun InP model."""
    class VAE:
        def encode(self, pixels):
            return SMALL
    positive, negative, _ = outputs("InpaintModelConditioning", A, text(1), torch.zeros(9, 32, 48, 3), VAE(),
                                    torch.ones(1, 32, 48), True)
    values = dict(concat_latent_image=SMALL, concat_mask=torch.ones(1, 1, 3, 4, 6))
    model = bench.model("Fun 5B InP")
    return bench.step(model, positive, noise(), negative=negative), bench.step(model, text(**values), noise())


# Conditionings

@case("ConditioningCombine")
def _(bench):
    return (bench.step(positive=output("ConditioningCombine", A, B)), (bench.step() + bench.step(positive=B)) / 2,
            bench.step())


@case("ConditioningAverage")
def _(bench):
    return (bench.step(positive=output("ConditioningAverage", A, B, 0.25)),
            bench.step(positive=[[0.25 * A[0][0] + 0.75 * B[0][0], {}]]), bench.step())


@case("ConditioningConcat")
def _(bench):
    return (bench.step(positive=output("ConditioningConcat", A, B)),
            bench.step(positive=[[torch.cat([A[0][0], B[0][0]], 1), {}]]), bench.step())


@case("ConditioningZeroOut")
def _(bench):
    return bench.step(positive=output("ConditioningZeroOut", A)), bench.step(positive=[[0 * A[0][0], {}]]), bench.step()


@case("ConditioningSetTimestepRange")
def _(bench):
    model = bench.model()
    parts = output("ConditioningCombine", output("ConditioningSetTimestepRange", A, 0.0, 0.5),
                      output("ConditioningSetTimestepRange", B, 0.5, 1.0))
    sigmas = bench.host.samplers.cogvideox_sigmas(model, 10)
    half = sample(bench.host, model, cfg=1.0, sigmas=sigmas[:6])
    wanted = sample(bench.host, model, 0 * noise(), half, cfg=1.0, sigmas=sigmas[5:], positive=B)
    return sample(bench.host, model, cfg=1.0, steps=10, positive=parts), wanted, sample(bench.host, model, cfg=1.0, steps=10)


def in_area(bench, area):
    start, place = noise(batch=2), (..., slice(2, 4), slice(2, 6))
    wanted = bench.step()
    wanted[place] = (wanted[place] + 2.0 * bench.step(positive=B, start=start[place])) / 3.0
    return bench.step(positive=output("ConditioningCombine", A, area)), wanted, bench.step()


@case("ConditioningSetArea")
def _(bench):
    return in_area(bench, output("ConditioningSetArea", B, 32, 16, 16, 16, 2.0))


@case("ConditioningSetAreaPercentage")
def _(bench):
    return in_area(bench, output("ConditioningSetAreaPercentage", B, 4 / 6, 0.5, 2 / 6, 0.5, 2.0))


@case("ConditioningSetAreaPercentageVideo")
def _(bench):
    return in_area(bench, output("ConditioningSetAreaPercentageVideo", B, 4 / 6, 0.5, 1.0, 2 / 6, 0.5, 0.0, 2.0,
                                 module="nodes_video_model"))


def quarter():
    mask = torch.zeros(1, 32, 48)
    mask[:, 16:, 16:] = 1.0
    return mask


@case("ConditioningSetMask, default")
def _(bench):
    given = output("ConditioningSetMask", B, quarter(), "default", 2.0)
    wanted, other, place = bench.step(), bench.step(positive=B), (..., slice(2, 4), slice(2, 6))
    wanted[place] = (wanted[place] + 2.0 * other[place]) / 3.0
    return bench.step(positive=output("ConditioningCombine", A, given)), wanted, bench.step()


@case("ConditioningSetMask, mask bounds")
def _(bench):
    return in_area(bench, output("ConditioningSetMask", B, quarter(), "mask bounds", 2.0))


def in_a_frame(bench, model, frame, bounds):
    mask = torch.zeros(3, 32, 48)
    mask[frame] = 1.0
    given = output("ConditioningSetMask", B, mask, bounds, 2.0)
    plain, other = bench.step(model), bench.step(model, B)
    wanted = plain.clone()
    wanted[:, :, frame] = (plain[:, :, frame] + 2.0 * other[:, :, frame]) / 3.0
    return bench.step(model, output("ConditioningCombine", A, given)), wanted, plain


@case("ConditioningSetMask, a mask for each latent frame")
def _(bench):
    return in_a_frame(bench, bench.model(), 1, "default")


@case("ConditioningSetMask on 1.5, an odd number of latents")
def _(bench):
    return in_a_frame(bench, bench.model("1.5"), 2, "mask bounds")


# Caches and windows

def cached(bench, name, limit):
    """Fewer runs of the network, and a video that is still near."""
    outs, counts = [], []
    for reuse in (limit, 0.0):
        model, runs = bench.model(), []
        model = output(name, model, reuse, 0.15, 0.95, False, module="nodes_easycache")
        model.set_model_patch(lambda args, runs=runs: runs.append(args["block_index"]) or args, "double_block")
        outs.append(sample(bench.host, model, noise(), steps=20))
        counts.append(runs.count(0))
    plain = sample(bench.host, bench.model(), noise(), steps=20)
    spared = counts[0] < counts[1] == 20 and outs[0].isfinite().all()
    return (outs[1], plain) if spared else (outs[0], None, plain)


@case("EasyCache")
def _(bench):
    return cached(bench, "EasyCacheNode", 3.0)


@case("LazyCache")
def _(bench):
    return cached(bench, "LazyCacheNode", 3.0)


def windowed(bench, name="5B", dim=2, length=4, frames=8, batch=1, values=None, **options):
    """A step in windows, and the widths that the network saw: (out, [(batch, frames)], the picture's channels)"""
    import inspect

    from comfy.patcher_extension import WrappersMP
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Node

    known = inspect.signature(Node.execute).parameters
    if any(value for key, value in options.items() if key not in known):
        raise NotThere(f"ContextWindowsManual of this ComfyUI has no {', '.join(options)}")
    ports = {port.id: port for port in Node.define_schema().inputs}
    given = {key: getattr(port, "default", None) for key, port in ports.items() if key in known and key != "model"}
    given |= dict(context_length=length, context_overlap=0, context_schedule="standard_static", fuse_method="pyramid", dim=dim)
    given |= {key: value for key, value in options.items() if key in known}
    model, seen = Node.execute(bench.model(name), **given).result[0], []
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", lambda executor, *args, **kwargs: seen.append(
        args[0].clone()) or executor(*args, **kwargs))
    start = noise(frames, batch)
    return bench.step(model, positive=text(**(values or {})), start=start), start, seen


@case("ContextWindowsManual, dim 2")
def _(bench):
    """Windows of frames, each drawn as a video of its own."""
    out, start, _ = windowed(bench, causal_window_fix=False)
    return out, torch.cat([bench.step(start=part) for part in start.split(4, dim=2)], 2), bench.step(start=start)


@case("ContextWindowsManual, dim 2, causal_window_fix")
def _(bench):
    """The frame before a window goes with it and is thrown away."""
    out, start, _ = windowed(bench, causal_window_fix=True)
    second = bench.step(start=start[:, :, 3:])[:, :, 1:]
    return out, torch.cat([bench.step(start=start[:, :, :4]), second], 2), bench.step(start=start)


@case("ContextWindowsManual, dim 0")
def _(bench):
    """The node's default: windows of the batch, for models of pictures."""
    out, start, seen = windowed(bench, dim=0)
    return out, None, bench.step(start=start)


@case("ContextWindowsManual on I2V, the first window")
def _(bench):
    clip = torch.cat([random(1, 16, 1, 4, 6), torch.zeros(1, 16, 7, 4, 6)], dim=2)
    values = dict(concat_latent_image=clip)
    out, start, seen = windowed(bench, "5B I2V", values=values, causal_window_fix=False)
    first = dict(concat_latent_image=clip[:, :, :4])
    return out[:, :, :4], bench.step(bench.model("5B I2V"), text(**first), start[:, :, :4])


@case("ContextWindowsManual on I2V, the other windows")
def _(bench):
    """The start picture goes into them, too."""
    clip = torch.cat([random(1, 16, 1, 4, 6), torch.zeros(1, 16, 7, 4, 6)], dim=2)
    out, start, seen = windowed(bench, "5B I2V", values=dict(concat_latent_image=clip), causal_window_fix=False)
    first = dict(concat_latent_image=clip[:, :, :4])
    return out[:, :, 4:], bench.step(bench.model("5B I2V"), text(**first), start[:, :, 4:])


@case("ContextWindowsManual on I2V, the other windows, cond_retain_index_list 0")
def _(bench):
    clip = torch.cat([random(1, 16, 1, 4, 6), torch.zeros(1, 16, 7, 4, 6)], dim=2)
    out, start, seen = windowed(bench, "5B I2V", values=dict(concat_latent_image=clip), causal_window_fix=False,
                                cond_retain_index_list="0")
    first = dict(concat_latent_image=clip[:, :, :4])
    return out[:, :, 4:], bench.step(bench.model("5B I2V"), text(**first), start[:, :, 4:])


@case("ContextWindowsManual on 1.5, an odd number of latents")
def _(bench):
    """Windows over the clip with the latent that goes before it, in pairs."""
    out, start, seen = windowed(bench, "1.5", frames=7, causal_window_fix=False)
    whole = torch.cat([bench.host.sampling.front_noise(start, 5), start], dim=2)
    model = bench.model("1.5")
    wanted = torch.cat([bench.step(model, start=part) for part in whole.split(4, dim=2)], 2)[:, :, 1:]
    return out, wanted


# Guidance and patches

def guided(bench, name, *arguments, module, start=None, **keywords):
    model = bench.model()
    patched = output(name, model, *arguments, module=module, **keywords)
    return bench.step(patched, cfg=3.0, start=start), bench.step(model, cfg=3.0, start=start)


def middle(bench):
    """c, u and the video's tokens of the middle block attending to themselves alone."""
    model = bench.model()
    weak = model.clone()
    weak.set_model_attn1_replace(lambda q, k, v, extra: v, "double_block", 1)
    return bench.step(model), bench.step(model, text(1)), bench.step(weak)


@case("PerturbedAttentionGuidance")
def _(bench):
    got, plain = guided(bench, "PerturbedAttentionGuidance", 2.0, module="nodes_pag")
    c, u, weak = middle(bench)
    return got, u + 3.0 * (c - u) + 2.0 * (c - weak), plain


@case("SkipLayerGuidanceDiT")
def _(bench):
    got, plain = guided(bench, "SkipLayerGuidanceDiT", module="nodes_slg", scale=2.0, start_percent=0.0, end_percent=1.0,
                        double_layers="1", single_layers="")
    weak = bench.model()
    weak.set_model_patch_replace(lambda args, extra: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 1)
    return got, plain + 2.0 * (bench.step() - bench.step(weak)), plain


@case("SelfAttentionGuidance")
def _(bench):
    got, plain = guided(bench, "SelfAttentionGuidance", 0.5, 2.0, module="nodes_sag")
    return got, None, plain


@case("VideoLinearCFGGuidance")
def _(bench):
    """From min_cfg at the first frame up to the sampler's cfg at the last."""
    got, plain = guided(bench, "VideoLinearCFGGuidance", 1.0, module="nodes_video_model", start=noise())
    c, u = bench.step(start=noise()), bench.step(positive=text(1), start=noise())
    scale = torch.linspace(1.0, 3.0, 3)[:, None, None]
    return got, u + scale * (c - u), plain


@case("VideoTriangleCFGGuidance")
def _(bench):
    got, plain = guided(bench, "VideoTriangleCFGGuidance", 1.0, module="nodes_video_model", start=noise())
    c, u = bench.step(start=noise()), bench.step(positive=text(1), start=noise())
    scale = torch.tensor([1.0, 3.0, 1.0])[:, None, None]
    return got, u + scale * (c - u), plain


@case("RescaleCFG")
def _(bench):
    """At the scale of v, over all of a clip's numbers."""
    got, plain = guided(bench, "RescaleCFG", 0.7, module="nodes_model_advanced")
    c, u = bench.step(), bench.step(positive=text(1))  # at timestep 999 v is -x0
    full = u + 3.0 * (c - u)
    ratio = c.std(dim=(1, 2, 3, 4), keepdim=True) / full.std(dim=(1, 2, 3, 4), keepdim=True)
    return got, 0.7 * full * ratio + 0.3 * full, plain


def without_effect(name, *arguments, module, **keywords):
    def result(bench):
        got, plain = guided(bench, name, *arguments, module=module, **keywords)
        return got, None, plain
    return result


CASES |= {
    "FreeU": without_effect("FreeU", 1.1, 1.2, 0.9, 0.2, module="nodes_freelunch"),
    "FreeU_V2": without_effect("FreeU_V2", 1.3, 1.4, 0.9, 0.2, module="nodes_freelunch"),
    "HyperTile": without_effect("HyperTile", 256, 2, 0, False, module="nodes_hypertile"),
    "TomePatchModel": without_effect("TomePatchModel", 0.3, module="nodes_tomesd"),
    "PatchModelAddDownscale": without_effect("PatchModelAddDownscale", 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic",
                                             module="nodes_model_downscale"),
    "ScaleROPE": without_effect("ScaleROPE", 2.0, 0.0, 1.0, 0.0, 1.0, 0.0, module="nodes_rope"),
    "NAGuidance": without_effect("NAGuidance", 5.0, 0.5, 1.5, module="nodes_nag"),
    "UNetCrossAttentionMultiply": without_effect("UNetCrossAttentionMultiply", 0.9, 0.9, 0.9, 0.9,
                                                 module="nodes_attention_multiply"),
}

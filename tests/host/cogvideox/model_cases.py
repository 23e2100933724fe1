"""Stock nodes that work on conditionings and on the model, with CogVideoX's: rows of docs/latent_nodes_cogvideox.md."""

import inspect

import torch

from .stock_cases import A, B, CASES, NotThere, case, output
from .video_model import noise, random, sample, text


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

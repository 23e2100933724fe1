"""Stock nodes that work on latents and on their masks, with CogVideoX's: rows of docs/latent_nodes_cogvideox.md."""

import torch

from .stock_cases import A, case, output, outputs
from .video_model import noise, random, sample, text

LATENT = random(1, 16, 3, 8, 12, seed=11)
OTHER = random(1, 16, 3, 8, 12, seed=12)
SMALL = random(1, 16, 3, 4, 6, seed=13)
LATENTS, MASKS = "nodes_latent", "nodes_mask"


def latent(samples):
    return {"samples": samples.clone()}


def run(name, *arguments, **keywords):
    """Samples that a node gives."""
    return output(name, *arguments, **keywords)["samples"]


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

"""What docs/latent_nodes_sana.md says of each stock latent node, on the host that runs. A latent pixel is 32 px."""

import re

import pytest
import torch

from sanacog.headless.installation import ROOT

from .. import stock
from .sana_model import apart, conditioning, host, model, noise, sample, weights  # noqa: F401

TABLE = (ROOT / "docs" / "latent_nodes_sana.md").read_text("utf-8")
TESTED = {}


def row(*names):
    """A test of what the table says of these nodes."""
    def add(test):
        TESTED.update(dict.fromkeys(names, test.__name__))
        return test
    return add


def latent(side=20, batch=1, seed=0):
    return {"samples": torch.randn(batch, 32, side, side, generator=torch.Generator().manual_seed(seed))}


def run(name, *args, module="nodes", **kwargs):
    return stock.run(name, *args, module=module, **kwargs)["samples"]


@pytest.fixture(scope="module")
def dcae(host):
    return host.vae.load_dcae(ROOT / "models" / "vae" / "sanacog_tiny_dcae.safetensors")


@pytest.fixture(scope="module")
def pictures():
    """What the embedded autoencoder knows: drawn shapes, (4, 256, 256, 3)."""
    from sanacog.evaluation.drawn import shapes

    generator = torch.Generator().manual_seed(9)
    return (shapes.draw(shapes.sample_scenes(4, generator), generator).movedim(1, -1) + 1) / 2


def test_every_row_is_tested():
    named = [name for line in TABLE.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(named) == sorted(TESTED)


@row("EmptyLatentImage")
def test_empty_latent_image(host, model):
    from sanacog.host.compat import corrects_empty_latents, fixed_empty_samples

    samples = fixed_empty_samples(model, stock.run("EmptyLatentImage", 256, 256))
    assert samples.shape == ((1, 32, 8, 8) if corrects_empty_latents() else (1, 32, 32, 32))


@row("LatentUpscale")
def test_upscale(host):
    assert run("LatentUpscale", latent(8), "bilinear", 256, 512, "disabled").shape == (1, 32, 64, 32)  # 1024 x 2048 px
    assert run("LatentUpscale", latent(8), "bilinear", 384 // 4, 512 // 4, "disabled").shape == (1, 32, 16, 12)
    assert run("LatentUpscale", latent(4), "bilinear", 8, 8, "disabled").shape == (1, 32, 8, 8)  # the least


@row("LatentUpscaleBy")
def test_upscale_by(host, dcae, pictures):
    z = {"samples": dcae.encode(pictures)}
    larger = run("LatentUpscaleBy", z, "bislerp", 1.5)
    assert larger.shape == (4, 32, 12, 12)
    scaled = stock.run("ImageScaleBy", pictures, "lanczos", 1.5)
    torn = (dcae.decode(larger) - scaled).abs().mean()
    through_pixels = (dcae.decode(dcae.encode(scaled)) - scaled).abs().mean()
    assert torn > 1.5 * through_pixels


@row("LatentCrop")
def test_crop(host):
    z = latent(20)
    assert torch.equal(run("LatentCrop", z, 256, 256, 64, 32), z["samples"][..., 4:, 8:])  # not 8 x 8 from (2, 1)
    assert torch.equal(run("LatentCrop", z, 320 // 4, 256 // 4, 64 // 4, 32 // 4), z["samples"][..., 1:9, 2:12])
    cut = run("LatentCut", {"samples": run("LatentCut", z, "x", 2, 10, module="nodes_latent")}, "y", 1, 8, module="nodes_latent")
    assert torch.equal(cut, z["samples"][..., 1:9, 2:12])


@row("LatentComposite", "LatentCompositeMasked")
@pytest.mark.parametrize("name, module, rest", [("LatentComposite", "nodes", (0,)),
                                                ("LatentCompositeMasked", "nodes_mask", (False,))])
def test_composite(host, name, module, rest):
    base, piece = latent(20), latent(4, seed=1)

    def pasted(x, y):
        wanted = base["samples"].clone()
        wanted[..., y : y + 4, x : x + 4] = piece["samples"]
        return wanted

    assert torch.equal(run(name, base, piece, 128 // 4, 64 // 4, *rest, module=module), pasted(4, 2))
    four_times = run(name, base, piece, 128, 64, *rest, module=module)
    wanted = base["samples"].clone()
    wanted[..., 8:12, 16:20] = piece["samples"]
    assert torch.equal(four_times, wanted)
    beyond = run(name, base, piece, 160, 0, *rest, module=module)
    assert torch.equal(beyond, base["samples"])  # silently


def test_feather_and_mask_of_composites(host):
    base, piece = {"samples": torch.zeros(1, 32, 20, 20)}, {"samples": torch.ones(1, 32, 16, 16)}
    for feather, wide in ((64, 8), (64 // 4, 2)):
        edge = run("LatentComposite", base, piece, 32, 32, feather=feather)[0, 0, 15, 4:]
        assert edge.tolist() == pytest.approx([min(1.0, (i + 1) / wide) for i in range(16)])
    piece = {"samples": torch.ones(1, 32, 8, 8)}
    mask = torch.zeros(1, 256, 256)
    mask[..., 64:128] = 1
    out = run("LatentCompositeMasked", base, piece, 0, 0, False, mask, module="nodes_mask")
    assert torch.equal(out[0, 0, 0, :8], torch.tensor([0.0, 0, 1, 1, 0, 0, 0, 0]))


@row("LatentFlip", "LatentRotate")
def test_flip_and_rotate_break_the_picture(host, dcae, pictures):
    z = {"samples": dcae.encode(pictures)}
    for turned, pixels in ((run("LatentFlip", z, "y-axis: horizontally"), pictures.flip(2)),
                           (run("LatentRotate", z, "180 degrees"), pictures.rot90(2, (1, 2)))):
        wrong, right = ((dcae.decode(samples) - pixels).abs().mean() for samples in (turned, dcae.encode(pixels)))
        assert wrong > 2 * right


@row("LatentConcat", "LatentCut")
def test_concat_and_cut_count_latent_pixels(host):
    a, b = latent(6), latent(6, seed=1)
    joined = run("LatentConcat", a, b, "x", module="nodes_latent")
    assert torch.equal(joined, torch.cat([a["samples"], b["samples"]], 3))
    assert torch.equal(run("LatentCut", {"samples": joined}, "x", 6, 6, module="nodes_latent"), b["samples"])


@row("LatentAdd", "LatentSubtract", "LatentMultiply", "LatentBlend", "LatentInterpolate")
def test_arithmetic(host):
    a, b = latent(6), latent(6, seed=1)
    s, t = a["samples"], b["samples"]
    for name, arguments, module, wanted in (
            ("LatentAdd", (a, b), "nodes_latent", s + t), ("LatentSubtract", (a, b), "nodes_latent", s - t),
            ("LatentMultiply", (a, 0.5), "nodes_latent", s * 0.5), ("LatentBlend", (a, b, 0.25), "nodes", 0.25 * s + 0.75 * t),
            ("LatentInterpolate", (a, b, 1.0), "nodes_latent", s)):
        assert apart(run(name, *arguments, module=module), wanted) < 1e-6, name


@row("LatentBatch", "RepeatLatentBatch", "LatentFromBatch", "RebatchLatents", "LatentBatchSeedBehavior")
def test_batches(host):
    a, b = latent(6, 2), latent(6, 1, seed=1)
    both = torch.cat([a["samples"], b["samples"]])
    assert torch.equal(run("LatentBatch", a, b, module="nodes_latent"), both)
    assert torch.equal(run("RepeatLatentBatch", b, 2), b["samples"].repeat(2, 1, 1, 1))
    assert torch.equal(run("LatentFromBatch", {"samples": both}, 1, 2), both[1:3])
    assert torch.equal(run("LatentBatchSeedBehavior", a, "fixed", module="nodes_latent"), a["samples"])
    parts = stock.run("LatentRebatch", [{"samples": both}], [1], module="nodes_rebatch")
    assert [part["samples"].shape[0] for part in parts] == [1, 1, 1] and torch.equal(parts[2]["samples"], b["samples"])


@row("LatentApplyOperation")
def test_operations(host):
    sharpen = stock.run("LatentOperationSharpen", 3, 1.0, 0.5, module="nodes_latent")
    z = latent(8)
    assert apart(run("LatentApplyOperation", z, sharpen, module="nodes_latent"), z["samples"]) > 0.01
    with pytest.raises(RuntimeError, match="[Pp]adding"):
        run("LatentApplyOperation", latent(3), sharpen, module="nodes_latent")


def redrawn(host, model, z):
    """Which latent pixels (H, W) a run with denoise 1 changes."""
    side = z["samples"].shape[-1]
    out = sample(host, model, z["samples"], start=noise(1, side, side), steps=1, noise_mask=z["noise_mask"])
    return (out - z["samples"]).abs().amax((0, 1)) > 1e-3


@row("SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning")
def test_inpainting(host, model, dcae, pictures):
    import nodes

    mask = torch.zeros(1, 256, 256)
    mask[:, :128, 96:] = 1
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[:4, 3:] = True
    picture = pictures[:1]
    encoded = {"samples": dcae.encode(picture)}
    assert torch.equal(redrawn(host, model, stock.run("SetLatentNoiseMask", encoded, mask)), wanted)
    small = torch.nn.functional.avg_pool2d(mask, 4)
    assert torch.equal(redrawn(host, model, stock.run("SetLatentNoiseMask", encoded, small)), wanted)
    for_inpaint = stock.run("VAEEncodeForInpaint", dcae, picture, mask, 0)
    assert torch.equal(redrawn(host, model, for_inpaint), wanted)
    grown = stock.run("VAEEncodeForInpaint", dcae, picture, mask, 64)["noise_mask"]
    assert 128 + 16 < int(grown[0, 0, :, 200].sum()) <= 128 + 33  # by half of it on each side
    positive = conditioning(9)
    out = nodes.InpaintModelConditioning().encode(positive, positive, picture, dcae, mask, True)[2]
    assert torch.equal(out["samples"], encoded["samples"]) and torch.equal(redrawn(host, model, out), wanted)


def test_area_prompts_are_in_pixels(host):
    from sanacog.host.sana.areas import in_latent_pixels

    [_, values] = stock.run("ConditioningSetArea", [[torch.zeros(1, 1, 1), {}]], 128, 64, 32, 96, 1.0)[0]
    assert in_latent_pixels(values["area"], (8, 8)) == (2, 4, 3, 1)  # height, width, y, x

"""Tora's parts on a CogVideoX MODEL, in the real host, on random tiny weights: the same numbers as the bare cores."""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.utils import flow_to_image

from sanacog.cogvideo_core import schedule
from sanacog.cogvideo_core.trajectories import field, parse

from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, TEXT_WIDTH, TOKENS, params_of
from .test_model_sampling import node
from .video_model import VARIANTS, apart, host, model, random, sample, text, weights  # noqa: F401

SIZE = 96, 64, 9  # width, height, frames
POINTS = "[[10, 20], [40, 30], [80, 50]]"


@pytest.fixture(scope="module")
def tora(host):
    from sanacog.host.cogvideox import tora

    return tora


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tinycog.save_tora(tmp_path_factory.mktemp("tora"))


@pytest.fixture(scope="module")
def vae(host, tmp_path_factory):
    from sanacog.host.cogvideox.vae import load_cogvideox_vae

    return load_cogvideox_vae(tinycog.save_autoencoder(tmp_path_factory.mktemp("vae") / "vae.safetensors"))


def start(frames=3, batch=1):
    return random(batch, 16, frames, SIZE[1] // 8, SIZE[0] // 8, seed=7)


def by_hand(vae, params=PARAMS, strength=1.0, during=range(3), video=None, x=None):
    """The same on the bare cores, with the reference's DDIM; in the VAE's scale."""
    fusers, extractor = tinycog.tora(params)
    base, steps = tinycog.transformer(params), []
    if video is None:
        video = flow_to_image(field(parse(POINTS), SIZE[2], SIZE[0], SIZE[1])).movedim(1, -1) / 255.0
    latent = vae.encode(video, clips="chunks")[0].transpose(0, 1) * params.scaling_factor
    features = extractor(latent) * strength

    def velocity(x, timestep):
        steps.append(timestep)
        t = torch.full((len(x),), float(timestep))

        def adapt(number, tokens, grid):
            return fusers[number](tokens, features[number]) if len(steps) - 1 in during else tokens
        c, u = (base(x, t, random(1, TOKENS, TEXT_WIDTH, seed=100 + i).expand(len(x), -1, -1), adapt=adapt) for i in (0, 1))
        return u + 3.0 * (c - u)
    return schedule.ddim(velocity, start() if x is None else x, 3, params.snr_shift_scale) / params.scaling_factor


def test_sampling_equals_the_bare_cores(host, tora, model, vae, files):
    plain = sample(host, model, start())
    patched, video = tora.follow_trajectories(model, vae, *files, *SIZE, POINTS)
    wanted = by_hand(vae)
    assert apart(sample(host, patched, start()), wanted) < 1e-5 and apart(plain, wanted) > 1e-2
    assert video.shape == (9, 64, 96, 3) and 0 <= video.min() < 0.9 and video.max() <= 1 and (video[0] == 1).all()
    assert torch.equal(sample(host, model, start()), plain)  # the original stays as it was
    two = sample(host, patched, start(batch=2))
    assert apart(two, by_hand(vae, x=start(batch=2))) < 1e-5
    again, _ = tora.follow_trajectories(model, vae, *files, *SIZE, flow_video=video)
    assert apart(sample(host, again, start()), wanted) < 1e-3  # a picture has 8 bits
    half, _ = tora.follow_trajectories(model, vae, *files, *SIZE, POINTS, strength=0.5)
    assert apart(sample(host, half, start()), by_hand(vae, strength=0.5)) < 1e-5
    early, _ = tora.follow_trajectories(model, vae, *files, *SIZE, POINTS, end=0.2)
    assert apart(sample(host, early, start()), by_hand(vae, during=[0])) < 1e-5
    late, _ = tora.follow_trajectories(model, vae, *files, *SIZE, POINTS, start=0.2)
    assert apart(sample(host, late, start()), by_hand(vae, during=[1, 2])) < 1e-5
    host.comfy.model_management.unload_all_models()
    assert apart(sample(host, patched, start()), wanted) < 1e-5


def test_one_file_of_both_parts(host, tora, model, vae, files, tmp_path):
    fuser, extractor = map(load_file, files)
    both = {f"fuser.{key}": t for key, t in fuser.items()} | {f"traj_extractor.{key}": t for key, t in extractor.items()
                                                              if "num_batches" not in key}
    save_file(both, tmp_path / "both.safetensors")
    patched, _ = tora.follow_trajectories(model, vae, tmp_path / "both.safetensors", tmp_path / "both.safetensors", *SIZE, POINTS)
    assert apart(sample(host, patched, start()), by_hand(vae)) < 1e-5
    # With the transformer in it, as Tora_T2V_diffusers has it, the same file is all three.
    tinycog.save(both | tinycog.transformer().state_dict(), tmp_path / "tora.safetensors", asdict(PARAMS))
    whole = host.cogvideox.load_cogvideox(tmp_path / "tora.safetensors")
    assert torch.equal(sample(host, whole, start()), sample(host, model, start()))
    patched, _ = tora.follow_trajectories(whole, vae, tmp_path / "tora.safetensors", tmp_path / "tora.safetensors", *SIZE, POINTS)
    assert apart(sample(host, patched, start()), by_hand(vae)) < 1e-5
    with pytest.raises(ValueError, match="both.safetensors: .*looks like Tora's motion fuser: it goes into CogVideoX Tora"):
        host.cogvideox.load_cogvideox(tmp_path / "both.safetensors")


def test_context_windows(host, tora, model, vae, files):
    """Each window sees its own part of the features."""
    patched, _ = tora.follow_trajectories(model, vae, *files, 96, 64, 33, POINTS)
    windows, = node("nodes_context_windows", "ContextWindowsManualNode", patched, context_length=4, context_overlap=2, dim=2)
    seen = []
    motion = windows.model_options["transformer_options"]["sanacog_motion"]
    [fusers] = windows.get_additional_models_with_key(tora.FUSERS)  # those that the host loads
    hook = fusers.model[0].register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    sample(host, windows, start(9), steps=1)
    hook.remove()
    places = {min(range(9), key=lambda i: apart(features[-1], motion.features[0][i])) for features in seen}
    assert len(places) >= 3 and all(len(features) <= 5 for features in seen)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn"])
def test_other_types(host, tora, weights, vae, files, weight_dtype):
    model = host.cogvideox.load_cogvideox(weights(), weight_dtype)
    patched, _ = tora.follow_trajectories(model, vae, *files, *SIZE, POINTS)
    found, plain = sample(host, patched, start(), steps=1), sample(host, model, start(), steps=1)
    assert found.isfinite().all() and apart(found, plain) > 1e-3


def test_refused(host, tora, model, vae, files, weights, tmp_path):
    def refused(match, model=model, fuser=files[0], extractor=files[1], size=SIZE, points=POINTS, **more):
        with pytest.raises(ValueError, match=match):
            tora.follow_trajectories(model, vae, fuser, extractor, *size, points, **more)

    refused("either trajectories or a flow_video", flow_video=torch.zeros(9, 64, 96, 3))
    refused("either trajectories or a flow_video", points=" ")
    refused("trajectories cannot be read", points="left")
    refused("not in the video at all: 96, 20 and so on, in a video of 96 x 64", points="[[[5, 5], [20, 20]], [[96, 20], [120, 30]]]")
    refused("length is 10", size=(96, 64, 10))
    refused("48 px: trajectories need at least 50", size=(96, 48, 9))
    refused("flow_video has 5 frames, length asks for 9", points="", flow_video=torch.zeros(5, 64, 96, 3))
    refused("traj_extractor.safetensors: this is not Tora's motion fuser, it looks like Tora's trajectory extractor", fuser=files[1])
    refused("fuser.safetensors: this is not Tora's trajectory extractor, it looks like Tora's motion fuser", extractor=files[0])
    refused("model is a 1.5", model=host.cogvideox.load_cogvideox(weights(params_of(version="1.5"))))
    other = tinycog.save_tora(tmp_path / "other", replace(PARAMS, num_layers=3))
    refused("made for 3 blocks of width 64, the model has 2 of 64: load the transformer that it goes with", fuser=other[0])
    refused("features for 3 blocks, fuser.safetensors has fusers for 2", extractor=other[1])
    broken = load_file(files[0])
    del broken["1.flow_beta_temporal.bias"]
    save_file(broken, tmp_path / "cut.safetensors")
    refused("cut.safetensors: not a whole Tora's motion fuser: missing 1.flow_beta_temporal.bias", fuser=tmp_path / "cut.safetensors")
    patched, _ = tora.follow_trajectories(model, vae, *files, *SIZE, POINTS)
    for shape in (start(4), random(1, 16, 3, 10, 12)):
        with pytest.raises(ValueError, match="made for 3 latent frames of 96 x 64 px, the video that is sampled has"):
            sample(host, patched, shape, steps=1)


def test_released_shapes(tora):
    """Tora-T2V and -I2V for CogVideoX-5B: 42 fusers of width 3072, an extractor of 84 blocks."""
    from sanacog.cogvideo_core.tora import MotionFuser, TrajectoryExtractor

    fuser = {key: tuple(t.shape) for key, t in MotionFuser(3072, device="meta").state_dict().items()}
    assert fuser == {f"flow_{name}_{where}.{leaf}": shape for name in ("gamma", "beta") for where, leaf, shape in (
        ("spatial", "weight", (768, 128, 3, 3)), ("spatial", "bias", (768,)), ("temporal", "weight", (3072, 768, 3)),
        ("temporal", "bias", (3072,)))} | {"flow_cond_norm.weight": (3072,), "flow_cond_norm.bias": (3072,)}
    extractor = {key: tuple(t.shape) for key, t in TrajectoryExtractor(42, device="meta").state_dict().items()}
    block = {f"{name}.{leaf}": shape for name in ("block1", "block2") for leaf, shape in (("weight", (128, 128, 3, 3)), ("bias", (128,)))}
    block |= {f"{name}.{leaf}": () if "num" in leaf else (128,) for name in ("bn1", "bn2")
              for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert extractor == {"conv_in.weight": (128, 64, 3, 3), "conv_in.bias": (128,)} | {
        f"body.{i}.{key}": shape for i in range(84) for key, shape in block.items()}

"""CogVideoX's ControlNet in the real host, on random tiny weights: the same numbers as the bare cores, and the host's ways."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sanacog.cogvideo_core import schedule

from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, TEXT_WIDTH, TOKENS, params_of
from .test_model_sampling import node
from .video_model import VARIANTS, apart, host, model, noise, random, reference, sample, text, weights  # noqa: F401

FRAMES = 9  # of three latent frames
SIDES = 4 * 8, 6 * 8


@pytest.fixture(scope="module")
def control(host):
    from sanacog.host.cogvideox import control

    return control


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tinycog.save_controlnet(tmp_path_factory.mktemp("controlnet") / "canny.safetensors")


@pytest.fixture
def net(control, file):
    return control.load_cogvideox_controlnet(file)


def video(frames=FRAMES, height=SIDES[0], width=SIDES[1], seed=3):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def apply(net, frames=None, strength=1.0, start=0.0, end=1.0, positive=None, negative=None, **values):
    """Both conditionings through the host's ControlNetApplyAdvanced, without a VAE."""
    import nodes

    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive or text(**values), negative or text(1, **values), net, video() if frames is None else frames, strength, start, end)
    return {"positive": positive, "negative": negative}


def by_hand(params, net, frames=None, strength=1.0, during=range(3), steps=3, cfg=3.0, start=None, channels=None):
    """The same on the bare cores, with the reference's DDIM; in the VAE's scale."""
    base, start = tinycog.transformer(params), noise() if start is None else start
    pixels = (2 * (video() if frames is None else frames) - 1).movedim(-1, 0)[None]
    hint, calls = net.encode(pixels), []

    def velocity(x, timestep):
        calls.append(timestep)
        t = torch.full((len(x),), float(timestep))
        seen = x if channels is None else torch.cat([x, channels.expand(len(x), -1, -1, -1, -1)], dim=1)
        found = []
        for i in (0, 1):
            context = random(1, TOKENS, TEXT_WIDTH, seed=100 + i).expand(len(x), -1, -1)
            residuals = net(x, t, context, hint.expand(len(x), -1, -1, -1, -1), params.use_rotary_positional_embeddings)

            def run_block(number, call, *args):
                tokens, words = call(*args)
                here = number < len(residuals) and len(calls) - 1 in during
                return (tokens + strength * residuals[number] if here else tokens), words
            found.append(base(seen, t, context, run_block=run_block))
        return found[1] + cfg * (found[0] - found[1])
    return schedule.ddim(velocity, start, steps, params.snr_shift_scale) / params.scaling_factor


@pytest.mark.parametrize("name", ["2B", "5B", "5B I2V"])
@pytest.mark.parametrize("layers, out", [(1, None), (2, 64)])
def test_sampling_equals_the_bare_cores(host, control, weights, tmp_path, name, layers, out):
    params = VARIANTS[name]
    own = replace(params, use_learned_positional_embeddings=False)
    model = host.cogvideox.load_cogvideox(weights(params))
    path = tinycog.save_controlnet(tmp_path / "net.safetensors", own, layers, out)
    net, core = control.load_cogvideox_controlnet(path), tinycog.controlnet(own, layers, out)
    picture = torch.cat([random(1, 16, 1, 4, 6), torch.zeros(1, 16, 2, 4, 6)], dim=2)
    values = {"concat_latent_image": picture} if name == "5B I2V" else {}
    channels = picture * params.scaling_factor if values else None
    wanted = by_hand(params, core, channels=channels)
    assert apart(sample(host, model, **apply(net, **values)), wanted) < 1e-5
    assert apart(sample(host, model, values=values), wanted) > 1e-2
    half = sample(host, model, **apply(net, strength=0.5, **values))
    assert apart(half, by_hand(params, core, strength=0.5, channels=channels)) < 1e-5 < 1e-3 < apart(half, wanted)
    early = sample(host, model, **apply(net, end=0.2, **values))
    assert apart(early, by_hand(params, core, during=[0], channels=channels)) < 1e-5
    late = sample(host, model, **apply(net, start=0.2, **values))
    assert apart(late, by_hand(params, core, during=[1, 2], channels=channels)) < 1e-5
    assert torch.equal(sample(host, model, **apply(net, strength=0, **values)), sample(host, model, values=values))


def test_hosts_to_come_find_the_encoded_video_by_the_latents_size(host, model, net, monkeypatch):
    """They look in a dictionary where today's look at cond_hint."""
    expected, kept = sample(host, model, **apply(net)), []
    monkeypatch.setattr(type(net), "cond_hints", property(lambda self: {}, lambda self, value: kept.append(value)), raising=False)
    assert torch.equal(sample(host, model, **apply(net)), expected)
    (size, video), = kept[0].items()
    assert video.shape[3:] == (SIDES[0] // 8, SIDES[1] // 8) and size == (video.shape[2], video.shape[3])


def test_a_batch_follows_the_same_video(host, model, net):
    start = noise(batch=2)
    found = sample(host, model, start, **apply(net))
    for i in range(2):
        assert apart(found[i : i + 1], sample(host, model, start[i : i + 1], **apply(net))) < 1e-5
    assert apart(found, by_hand(PARAMS, tinycog.controlnet(), start=start)) < 1e-5
    alone = sample(host, model, cfg=1.0, **apply(net))
    assert apart(alone, sample(host, model, cfg=1.0)) > 1e-3


def test_control_videos_of_other_sizes(host, model, net):
    right = sample(host, model, steps=1, **apply(net))
    assert torch.equal(sample(host, model, steps=1, **apply(net, torch.cat([video(), video(4, seed=9)]))), right)
    rgba = torch.cat([video(), torch.rand(FRAMES, *SIDES, 1)], dim=-1)
    assert torch.equal(sample(host, model, steps=1, **apply(net, rgba)), right)
    plain = torch.full((FRAMES, *SIDES, 3), 0.25)
    wide = torch.cat([1 - plain, plain, 1 - plain], dim=2)
    wanted = sample(host, model, steps=1, **apply(net, plain))
    assert apart(sample(host, model, steps=1, **apply(net, wide)), wanted) < 1e-3
    assert apart(sample(host, model, steps=1, **apply(net, 1 - plain)), wanted) > 1e-2
    one = sample(host, model, steps=1, **apply(net, video(1)))
    assert apart(one, sample(host, model, steps=1, **apply(net, video(1).expand(FRAMES, -1, -1, -1)))) < 1e-6
    assert apart(one, right) > 1e-3


def test_odd_sides_and_another_video_with_the_same_net(host, model, net):
    start = noise(frames=2, height=5, width=7)
    frames = video(5, 40, 56)
    assert apart(sample(host, model, start, **apply(net, frames)),
                 by_hand(PARAMS, tinycog.controlnet(), frames, start=start)) < 1e-5
    assert apart(sample(host, model, **apply(net)), by_hand(PARAMS, tinycog.controlnet())) < 1e-5


def test_two_controlnets_add_up(host, model, control, net, tmp_path):
    other = control.load_cogvideox_controlnet(tinycog.save_controlnet(tmp_path / "hed.safetensors", layers=2, seed=8))
    seen, watched = [], model.clone()
    watched.add_wrapper_with_key("diffusion_model", "test", lambda executor, *args, **kw: seen.append(
        [r.clone() for r in args[3]["input"]]) or executor(*args, **kw))
    for conds in (apply(net), apply(other), apply(other, **apply(net))):
        sample(host, watched, steps=1, **conds)
    first, second, both = seen
    assert [len(parts) for parts in seen] == [1, 2, 2]
    assert apart(both[0], first[0] + second[0]) < 1e-6 and apart(both[1], second[1]) < 1e-6


def test_only_one_of_the_prompts_is_controlled(host, model, net):
    conds = apply(net)
    half = sample(host, model, positive=conds["positive"])
    assert min(apart(half, sample(host, model, **conds)), apart(half, sample(host, model))) > 1e-3


def test_context_windows(host, model, net):
    """Each window sees its part of the control video: what the network's input is, is watched."""
    frames, seen = video(33), []
    windows, = node("nodes_context_windows", "ContextWindowsManualNode", model, context_length=4, context_overlap=2, dim=2)
    hook = net.control_model.register_forward_pre_hook(lambda _, args, kw: seen.append((kw["x"].shape[2], kw["hint"].clone())),
                                                       with_kwargs=True)
    sample(host, windows, noise(9), steps=1, **apply(net, frames))
    hook.remove()
    whole = tinycog.controlnet().encode((2 * frames - 1).movedim(-1, 0)[None])
    places = set()
    for length, hint in seen:
        fits = [start for start in range(9) if hint.shape[2] == length
                and any(apart(hint[:, :, -part:], whole[:, :, start : start + part]) < 1e-5 for part in (length, length - 1)
                        if whole[:, :, start : start + part].shape[2] == part)]
        assert fits
        places.add(fits[0])
    assert len(places) >= 3


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_other_types(host, model, control, file, net, dtype):
    wanted, plain = sample(host, model, steps=1, **apply(net)), sample(host, model, steps=1)
    narrow = control.load_cogvideox_controlnet(file, dtype)
    assert apart(sample(host, model, steps=1, **apply(narrow)), wanted) < 0.3 * apart(plain, wanted)
    assert narrow.control_model.patch_embed.proj.weight.dtype.itemsize >= 2
    assert narrow.control_model.transformer_blocks[0].ff.net[2].weight.dtype == {
        "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}[dtype]


def test_the_timestep_is_not_rounded(host, model, control, file):
    net, seen = control.load_cogvideox_controlnet(file, "bf16"), []
    net.manual_cast_dtype = torch.bfloat16
    hook = net.control_model.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["timestep"][0].item()), with_kwargs=True)
    sample(host, model, **apply(net))
    hook.remove()
    assert seen == [999.0, 666.0, 332.0]  # round(1000 - k 1000 / 3) - 1; bf16 has no 999


def test_copies_share_the_weights_and_nothing_else(host, model, net):
    conds = apply(net)
    twin = conds["positive"][0][1]["control"]
    assert twin is not net and type(twin) is type(net) and twin.get_models() == net.get_models()
    assert (net.strength, net.cond_hint_original) == (1.0, None)
    first = sample(host, model, steps=1, **conds)
    assert twin.encoded is None and twin.cond_hint is None  # tidied up
    host.comfy.model_management.unload_all_models()
    assert torch.equal(sample(host, model, steps=1, **conds), first)
    assert twin.inference_memory_requirements(torch.float16) == 2 * (3 * 4 * 6 // 4) * 64 * 1 * 2


def test_refused_before_sampling(host, model, control, net, weights, tmp_path):
    def refuses(match, base=model, net=net, start=None, **given):
        with pytest.raises(ValueError, match=match):
            sample(host, base, start, steps=1, **apply(net, **given))

    refuses("control video has 8 frames, and the video that is sampled 9.*5 frames", frames=video(8))
    refuses("control video is empty: 0 x", frames=video(0))
    from comfy.controlnet import ControlBase
    assert ControlBase.inference_memory_requirements(net, torch.float16) == net.inference_memory_requirements(torch.float16) == 0
    refuses("made for CogVideoX 1.0.*the model is a 1.5", host.cogvideox.load_cogvideox(weights(params_of(version="1.5"))),
            start=noise(4))
    wider = replace(PARAMS, num_attention_heads=4)
    refuses("width 128, the model's is 64", net=control.load_cogvideox_controlnet(
        tinycog.save_controlnet(tmp_path / "wide.safetensors", wider)))
    refuses("guides 3 blocks, and the model has only 2", net=control.load_cogvideox_controlnet(
        tinycog.save_controlnet(tmp_path / "deep.safetensors", layers=3)))
    refuses("text_embed_dim is 32, the model's is 64", net=control.load_cogvideox_controlnet(
        tinycog.save_controlnet(tmp_path / "text.safetensors", replace(PARAMS, text_embed_dim=32))))
    assert sample(host, model, steps=1, **apply(net)).isfinite().all()


def test_of_another_family(host, net, tmp_path):
    from .. import tiny
    from ..sana import sana_model
    from sanacog.host.sana import model as sana

    base = sana.load_sana(tiny.save_sana(tmp_path / "sana.safetensors"))
    conds = apply(net, positive=sana_model.conditioning(9), negative=sana_model.conditioning(1, seed=1))
    start = sana_model.noise()
    with pytest.raises(ValueError, match="This ControlNet is CogVideoX's, and the model that it should guide is not"):
        host.comfy.sample.sample(base, start, 1, 4.5, "euler", "simple", conds["positive"], conds["negative"], start, seed=0)


def test_files(host, model, control, file, net, tmp_path):
    wanted, tensors = sample(host, model, steps=1, **apply(net)), load_file(file)
    folder = tmp_path / "cogvideox-5b-controlnet-canny-v1"
    folder.mkdir()
    from safetensors import safe_open
    with safe_open(file, "pt") as opened:
        (folder / "config.json").write_text(opened.metadata()["config"])
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(sample(host, model, steps=1, **apply(control.load_cogvideox_controlnet(folder))), wanted)
    with pytest.raises(ValueError, match="x.safetensors: not a CogVideoX ControlNet: this is a CogVideoX transformer: use Load CogV"):
        control.load_cogvideox_controlnet(tinycog.save_transformer(tmp_path / "x.safetensors"))
    with pytest.raises(ValueError, match="canny.safetensors: this is no CogVideoX transformer, it looks like a CogVideoX ControlNet: "
                                         "use Load CogVideoX ControlNet"):
        host.cogvideox.load_cogvideox(file)
    broken = {key: t.clone() for key, t in tensors.items()}
    broken["transformer_blocks.0.ff.net.2.weight"][0, 0] = float("nan")
    save_file(broken, tmp_path / "nan.safetensors")
    bad = control.load_cogvideox_controlnet(tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="nan.safetensors: transformer_blocks.0.ff.net.2.weight holds NaN"):
        sample(host, model, steps=1, **apply(bad))

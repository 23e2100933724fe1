"""Sana's ControlNet in the real host, on random tiny weights: the same numbers as the bare cores, and the host's own ways."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sanacog.sana_core import controlnet_checkpoint

from .. import stock, tiny
from .sana_model import apart, conditioning, host, model, noise, sample, vae, weights  # noqa: F401

SCALE = 0.41407
WIRINGS = pytest.mark.parametrize("wiring", ["native", "diffusers"])
SIDES = 5 * 32, 7 * 32  # of the pictures that `noise` is the latent of


@pytest.fixture(scope="module")
def control(host):
    from sanacog.host.sana import control

    return control


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlnet")
    return {wiring: tiny.save_controlnet(folder / f"{wiring}.safetensors", wiring) for wiring in ("native", "diffusers")}


def picture(batch=1, height=SIDES[0], width=SIDES[1], seed=3):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def apply(net, vae, image=None, strength=1.0, start=0.0, end=1.0, positive=None, negative=None):
    """Both conditionings through the host's ControlNetApplyAdvanced."""
    import nodes

    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        conditioning(9) if positive is None else positive, conditioning(1, seed=1) if negative is None else negative, net,
        picture() if image is None else image, strength, start, end, vae=vae)
    return {"positive": positive, "negative": negative}


@pytest.fixture
def by_hand(host, model, vae):
    """What `sample` does with a ControlNet, on the bare cores, the two halves of CFG one after the other."""
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)

    def run(wiring, strength=1.0, during=range(3), base=None, net=None):
        base, net, x = base or tiny.sana(), net or tiny.controlnet(wiring), noise()
        hint = SCALE * vae.encode(picture()).expand(2, -1, -1, -1)
        for step, (s, t) in enumerate(zip(sigmas, sigmas[1:])):
            velocities = []
            for text in (conditioning(1, seed=1), conditioning(9)):
                inputs = x, (1000 * s).expand(2), text[0][0].expand(2, -1, -1), text[0][1]["attention_mask"].expand(2, -1)
                residuals = net(*inputs, control=hint, base_block=base.transformer_blocks[0])

                def run_block(i, call, *args):
                    tokens, text = call(*args)
                    here = residuals[i] if step in during and i < len(residuals) else None
                    return tokens if here is None else tokens + strength * here, text
                velocities.append(base(*inputs, run_block=run_block))
            x = x + (t - s) * (velocities[0] + 4.5 * (velocities[1] - velocities[0]))
        return x / SCALE
    return run


@WIRINGS
def test_sampling_equals_the_bare_cores(host, control, model, vae, by_hand, files, wiring):
    net = control.load_sana_controlnet(files[wiring])
    expected = by_hand(wiring)
    assert apart(sample(host, model, **apply(net, vae)), expected) < 1e-5
    assert apart(sample(host, model), expected) > 1e-2
    half = sample(host, model, **apply(net, vae, strength=0.5))
    assert apart(half, by_hand(wiring, strength=0.5)) < 1e-5 < 1e-3 < apart(half, expected)
    early = sample(host, model, **apply(net, vae, end=0.2))
    assert apart(early, by_hand(wiring, during=[0])) < 1e-5
    late = sample(host, model, **apply(net, vae, start=0.2))
    assert apart(late, by_hand(wiring, during=[1, 2])) < 1e-5
    assert torch.equal(sample(host, model, **apply(net, vae, strength=0)), sample(host, model))


@WIRINGS
@pytest.mark.parametrize("base_name", ["Sana", "Sprint"])
def test_shift_nodes_of_other_models_do_not_change_its_timestep(host, control, vae, tmp_path, wiring, base_name):
    """ModelSamplingAuraFlow's unit is 1, ModelSamplingSD3's 1000; with explicit sigmas nothing else of them counts."""
    params = tiny.SANA if base_name == "Sana" else replace(tiny.SANA, guidance_embeds=True, qk_norm=True)
    model = host.sana.load_sana(tiny.save_sana(tmp_path / "base.safetensors", params))
    net = control.load_sana_controlnet(tiny.save_controlnet(tmp_path / "net.safetensors", wiring, params))
    sigmas = torch.tensor([0.98, 0.5, 0.0])
    wanted = sample(host, model, cfg=1.0, sigmas=sigmas, **apply(net, vae))
    for name in ("ModelSamplingAuraFlow", "ModelSamplingSD3"):
        shifted = stock.run(name, model, 3.0, module="nodes_model_advanced")
        assert apart(sample(host, shifted, cfg=1.0, sigmas=sigmas, **apply(net, vae)), wanted) < 1e-6


def test_dcae_of_another_scale_is_refused(host, control, model, vae, files, monkeypatch):
    monkeypatch.setattr(vae, "latent_scale", 0.3189)
    with pytest.raises(ValueError, match="0.3189.*0.41407.*dc-ae-f32c32-sana-1.1"):
        sample(host, model, **apply(control.load_sana_controlnet(files["native"]), vae))


def test_the_control_picture_is_encoded_once(host, control, model, vae, files, monkeypatch):
    calls, encode = [], type(vae).encode
    monkeypatch.setattr(type(vae), "encode", lambda self, pixels: calls.append(pixels.shape) or encode(self, pixels))
    sample(host, model, **apply(control.load_sana_controlnet(files["native"]), vae))
    assert calls == [(1, *SIDES, 3)]


def test_nvlabs_file_and_the_base_in_it(host, control, model, vae, by_hand, tmp_path):
    base, net = tiny.sana().state_dict(), tiny.controlnet().state_dict()
    net |= {key: base[key] for key in net if key in base and not key.startswith("transformer_blocks.")}
    path = tmp_path / "ControlNet_HED.pth"
    torch.save({"state_dict": controlnet_checkpoint.from_canonical(net, "nvlabs", base)}, path)
    (tmp_path / "config.json").write_text(json.dumps(asdict(tiny.SANA)))
    core = tiny.controlnet()
    core.load_state_dict(net)
    loaded = sample(host, host.sana.load_sana(path), **apply(control.load_sana_controlnet(path), vae))
    assert apart(loaded, by_hand("native", net=core)) < 1e-5


def test_wiring_can_be_told(host, control, model, vae, by_hand, files):
    net = control.load_sana_controlnet(files["diffusers"], wiring="native")
    assert apart(sample(host, model, **apply(net, vae)), by_hand("native", net=tiny.controlnet("native"))) < 1e-5


def test_lora_on_the_first_block_counts_in_the_native_wiring(host, control, model, vae, by_hand, files):
    key = "diffusion_model.transformer_blocks.0.attn2.to_v.weight"
    change = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    patched = model.clone()
    patched.add_patches({key: (change,)}, 1.0)
    base = tiny.sana()
    base.transformer_blocks[0].attn2.to_v.weight += change
    found = sample(host, patched, **apply(control.load_sana_controlnet(files["native"]), vae))
    assert apart(found, by_hand("native", base=base)) < 1e-4
    assert apart(found, by_hand("native")) > 1e-2


def test_two_controlnets_add_up(host, control, model, vae, files):
    nets = [control.load_sana_controlnet(files[wiring]) for wiring in files]
    seen = []
    watched = model.clone()
    watched.add_wrapper_with_key("diffusion_model", "test", lambda executor, *args, **kw: seen.append(
        [None if r is None else r.clone() for r in args[5]["input"]]) or executor(*args, **kw))
    for conds in (apply(nets[0], vae), apply(nets[1], vae), apply(nets[1], vae, **apply(nets[0], vae))):
        sample(host, watched, steps=1, **conds)
    native, diffusers, both = seen
    assert len(native) == 2 and diffusers[0] is None and len(diffusers) == len(both) == 3
    for i, found in enumerate(both):
        parts = [r[i] for r in (native, diffusers) if i < len(r) and r[i] is not None]
        assert apart(found, sum(parts)) < 1e-5


def test_control_picture_of_another_size(host, control, model, vae, files):
    """Of one colour every size is the same picture; of another shape the middle counts."""
    net = control.load_sana_controlnet(files["native"])
    plain = torch.full((1, *SIDES, 3), 0.25)
    right = sample(host, model, steps=1, **apply(net, vae, plain))
    assert apart(sample(host, model, steps=1, **apply(net, vae, plain.repeat(1, 2, 2, 1))), right) < 0.02
    wide = torch.cat([1 - plain, plain, 1 - plain], dim=2)
    assert apart(sample(host, model, steps=1, **apply(net, vae, wide)), right) < 0.02
    assert apart(sample(host, model, steps=1, **apply(net, vae, 1 - plain)), right) > 0.05


def test_thin_lines_stay_where_the_control_picture_gets_smaller(host, control, model, vae, files):
    net = control.load_sana_controlnet(files["native"])
    lines = torch.zeros(1, 2 * SIDES[0], 2 * SIDES[1], 3)
    nothing = sample(host, model, steps=1, **apply(net, vae, lines))
    for first in range(2):  # picking every second pixel would lose all lines of one of these
        lined = lines.clone()
        lined[:, first::8, :] = 1
        assert apart(sample(host, model, steps=1, **apply(net, vae, lined)), nothing) > 1e-3


def test_every_picture_of_a_batch_has_its_own(host, control, model, vae, files):
    net = control.load_sana_controlnet(files["native"])
    pictures, rgba = picture(2), torch.cat([picture(2), torch.rand(2, *SIDES, 1)], dim=-1)
    both = sample(host, model, steps=1, **apply(net, vae, pictures))
    assert torch.equal(sample(host, model, steps=1, **apply(net, vae, rgba)), both)  # transparency is not looked at
    for i in range(2):
        one = sample(host, model, steps=1, **apply(net, vae, pictures[i:i + 1]))
        assert apart(both[i], one[i]) < 1e-5
        assert apart(both[i], one[1 - i]) > 1e-2
    alone = sample(host, model, steps=1, cfg=1.0, **apply(net, vae))
    assert apart(alone, sample(host, model, steps=1, cfg=1.0)) > 1e-3


def test_only_one_of_the_prompts_is_controlled(host, control, model, vae, files):
    """The halves of CFG then cannot share a batch."""
    conds = apply(control.load_sana_controlnet(files["native"]), vae)
    half = sample(host, model, positive=conds["positive"])
    assert min(apart(half, sample(host, model, **conds)), apart(half, sample(host, model))) > 1e-3


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_other_types(host, control, model, vae, weights, files, dtype):
    """The ControlNet in another type than its base, and the other way round."""
    expected = sample(host, model, steps=1, **apply(control.load_sana_controlnet(files["native"]), vae))
    plain = sample(host, model, steps=1)
    narrow = sample(host, model, steps=1, **apply(control.load_sana_controlnet(files["native"], dtype), vae))
    assert apart(narrow, expected) < 0.3 * apart(plain, expected)
    base = host.sana.load_sana(weights.sana, dtype)
    both = sample(host, base, steps=1, **apply(control.load_sana_controlnet(files["native"]), vae))
    assert torch.isfinite(both).all() and apart(both, sample(host, base, steps=1)) > 0.02


def test_computing_in_bf16_beside_a_base_in_fp32(host, control, model, vae, files):
    """The host rounds its timesteps to the ControlNet's type, 857 to 856; what the base sees, the ControlNet sees too."""
    net, seen = control.load_sana_controlnet(files["native"], "bf16"), []
    net.manual_cast_dtype = torch.bfloat16
    hook = net.control_model.register_forward_pre_hook(lambda _, args, kw: seen.append((kw["x"].dtype, kw["timestep"][0].item())),
                                                       with_kwargs=True)
    narrow = sample(host, model, **apply(net, vae))
    hook.remove()
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    assert [dtype for dtype, _ in seen] == [torch.bfloat16] * 3
    assert [t for _, t in seen] == pytest.approx([1000 * s for s in sigmas[:3].tolist()], abs=1e-3)
    wide = sample(host, model, **apply(control.load_sana_controlnet(files["native"]), vae))
    assert 1e-5 < apart(narrow, wide) < 0.2 * apart(sample(host, model), wide)


def test_sprint(host, control, vae, tmp_path):
    params = replace(tiny.SANA, guidance_embeds=True, qk_norm=True)
    base = host.sana.load_sana(tiny.save_sana(tmp_path / "sprint.safetensors", params))
    net = control.load_sana_controlnet(tiny.save_controlnet(tmp_path / "control.safetensors", params=params))
    conds = [apply(net, vae, positive=[[text, {**more, "guidance": g}] for text, more in conditioning(9)]) for g in (1.0, 4.5)]
    weak, strong = (sample(host, base, steps=1, cfg=1.0, **cond) for cond in conds)
    assert apart(weak, strong) > 1e-3 and torch.isfinite(weak).all()


def test_copies_share_the_weights_and_nothing_else(host, control, model, vae, files):
    net = control.load_sana_controlnet(files["native"])
    conds = apply(net, vae)
    twin = conds["positive"][0][1]["control"]
    assert twin is conds["negative"][0][1]["control"] and twin is not net and type(twin) is type(net)
    assert twin.get_models() == net.get_models() and (net.strength, net.cond_hint_original) == (1.0, None)
    first = sample(host, model, steps=1, **conds)
    weak = sample(host, model, steps=1, **apply(net, vae, strength=0.3))
    assert torch.equal(sample(host, model, steps=1, **conds), first) and not torch.equal(first, weak)
    loaded = [m.model for m in host.comfy.model_management.current_loaded_models]
    assert net.control_model_wrapped in loaded  # the host loads it, and unloads it for others
    host.comfy.model_management.unload_all_models()
    assert torch.equal(sample(host, model, steps=1, **conds), first)


def test_interrupt(host, control, model, vae, files):
    mm = host.comfy.model_management
    net = control.load_sana_controlnet(files["native"])
    conds = apply(net, vae)
    expected = sample(host, model, steps=1, **conds)
    hook = net.control_model.input_block.register_forward_pre_hook(lambda *_: mm.interrupt_current_processing(True))
    with pytest.raises(mm.InterruptProcessingException):
        sample(host, model, steps=1, **conds)
    hook.remove()
    mm.interrupt_current_processing(False)
    assert torch.equal(sample(host, model, steps=1, **conds), expected)


def test_what_does_not_fit_is_refused_before_anything_is_computed(host, control, model, vae, files, tmp_path):
    import comfy.sd

    ran = []
    model.model.diffusion_model.register_forward_pre_hook(lambda *_: ran.append("base"))

    def refused(message, **kw):
        kw = {"net": control.load_sana_controlnet(files["native"]), "vae": vae, **kw}
        kw["net"].control_model.register_forward_pre_hook(lambda *_: ran.append("control"))
        with pytest.raises(ValueError, match=message):
            sample(host, kw.pop("model", model), **apply(**kw))
        assert not ran

    def made(**changes):
        layers = changes.pop("layers", 2)
        return control.load_sana_controlnet(tiny.save_controlnet(
            tmp_path / "x.safetensors", params=replace(tiny.SANA, **changes), num_layers=layers))

    other = comfy.sd.VAE(sd={})
    other.latent_channels = 4
    refused("connect the VAE from Load DC-AE to the vae input of Apply ControlNet", vae=None)
    refused("makes latents of 4 channels, Sana's have 32", vae=other)
    refused("its width is 96, the model's is 64", net=made(num_attention_heads=3))
    refused("its caption_channels is 48, the model's is 64", net=made(caption_channels=48))
    refused("3 copied blocks, and the model only 3 blocks", net=made(layers=3))
    refused("The control picture is 1 x 1 x 160 x 224", image=picture()[..., :1])
    assert control.check_base(model.model, made().params) is None
    with pytest.raises(ValueError, match="This ControlNet is Sana's"):
        control.check_base(object(), tiny.SANA)


def test_files_that_are_none(control, files, weights, tmp_path):
    with pytest.raises(ValueError, match="sana.safetensors: not a Sana ControlNet: .*use Load Sana Model"):
        control.load_sana_controlnet(weights.sana)
    with pytest.raises(ValueError, match="not a Sana transformer: this is a Sana ControlNet: use Load Sana ControlNet"):
        from sanacog.host.sana.model import load_sana
        load_sana(files["native"])
    cut = tiny.save_controlnet(tmp_path / "cut.safetensors", **{"controlnet_blocks.1.weight": None})
    with pytest.raises(ValueError, match="cut.safetensors: .*missing controlnet_blocks.1.weight"):
        control.load_sana_controlnet(cut)
    with pytest.raises(ValueError, match="weight_dtype"):
        control.load_sana_controlnet(files["native"], "int3")


def shard(folder, file):
    """The same ControlNet as diffusers writes a large one: two files, an index and config.json."""
    with safe_open(file, "pt") as opened:
        tensors, config = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()["config"]
    (folder / "config.json").write_text(config)
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: t for key, t in tensors.items() if index[key] == name}, folder / name)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_lists_offer_pipelines_that_have_one(host, control, vae, by_hand, model, files, tmp_path, monkeypatch):
    import folder_paths

    pipeline = tmp_path / "diffusers" / "SanaControl"
    (pipeline / "controlnet").mkdir(parents=True)
    (tmp_path / "diffusers" / "Sana" / "transformer").mkdir(parents=True)
    for folder in (pipeline, tmp_path / "diffusers" / "Sana"):
        (folder / "model_index.json").write_text("{}")
    shard(pipeline / "controlnet", files["native"])
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        **folder_paths.folder_names_and_paths,
        "controlnet": ([str(files["native"].parent)], folder_paths.supported_pt_extensions),
        "diffusers": ([str(tmp_path / "diffusers")], ["folder"])})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    assert host.files.choices("controlnet") == ["diffusers.safetensors", "native.safetensors", "SanaControl"]
    net = control.load_sana_controlnet(host.files.model_path("controlnet", "SanaControl"))
    assert apart(sample(host, model, **apply(net, vae)), by_hand("native")) < 1e-5


def test_lazily_loaded_layers(host, control, files, monkeypatch):
    """Newer hosts on NVIDIA make layers without weights, and put the file's own tensors in."""
    memory = pytest.importorskip("comfy.memory_management", reason="a host before dynamic loading")
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.comfy.model_management, "WINDOWS", True, raising=False)
    expected = tiny.controlnet().state_dict()
    loaded = control.load_sana_controlnet(files["native"]).control_model.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_stock_canny_gives_its_picture(host, control, model, vae, files):
    square = torch.zeros(1, *SIDES, 3)
    square[:, 40:120, 60:160] = 1
    edges = stock.run("Canny", square, 0.4, 0.8, module="nodes_canny")
    net = control.load_sana_controlnet(files["native"])
    found = sample(host, model, steps=1, **apply(net, vae, edges))
    assert apart(found, sample(host, model, steps=1, **apply(net, vae, torch.zeros_like(edges)))) > 1e-3

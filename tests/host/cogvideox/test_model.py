"""CogVideoX's MODEL inside the real host, on random tiny weights: the same numbers as the bare core."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sanacog.cogvideo_core.checkpoint import from_canonical

from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, TEXT_WIDTH, TOKENS, params_of
from .video_model import VARIANTS, apart, host, model, noise, random, reference, sample, text, weights  # noqa: F401


# Variants and layouts

@pytest.mark.parametrize("layout", ["diffusers", "sat", "comfy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_layouts(host, tmp_path, name, layout):
    params = VARIANTS[name]
    core = tinycog.transformer(params).state_dict()
    renamed = {key: t.contiguous() for key, t in from_canonical(core, layout).items()}
    (tmp_path / "config.json").write_text(json.dumps(asdict(params)))
    if layout == "sat":
        path = tmp_path / "mp_rank_00_model_states.pt"
        torch.save({"module": {f"model.diffusion_model.{key}": t for key, t in renamed.items()}, "epoch": 1}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(renamed, path)
    model = host.cogvideox.load_cogvideox(path)
    assert model.model.model_config.params == params
    loaded = model.model.diffusion_model.state_dict()
    assert loaded.keys() == core.keys() and all(torch.equal(loaded[key], core[key]) for key in core)


def test_pipeline_and_sharded_folders(host, model, tmp_path):
    state_dict = tinycog.transformer().state_dict()
    folder = tmp_path / "CogVideoX" / "transformer"
    folder.mkdir(parents=True)
    (tmp_path / "CogVideoX" / "model_index.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(asdict(PARAMS)))
    names = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
    keys = sorted(state_dict)
    weight_map = {key: names[i % 2] for i, key in enumerate(keys)}
    for name in names:
        save_file({key: state_dict[key].contiguous() for key in keys if weight_map[key] == name}, folder / name)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for path in (tmp_path / "CogVideoX", folder):
        assert torch.equal(sample(host, host.cogvideox.load_cogvideox(path)), sample(host, model))


def test_conditioning_can_be_chosen(host, weights, tmp_path):
    """32 channels without a table or an ofs embedding: the file does not tell a start picture from a control video."""
    path = tmp_path / "model.safetensors"
    save_file({key: t.contiguous() for key, t in tinycog.transformer(params_of("image")).state_dict().items()}, path)
    load = host.cogvideox.load_cogvideox
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in asdict(PARAMS).items() if k != "conditioning"}))
    assert load(path).model.model_config.params.conditioning == "control"
    chosen = load(path, conditioning="image")
    assert chosen.model.model_config.params.conditioning == "image"
    host.comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), chosen)
    assert load(tmp_path / "saved.safetensors").model.model_config.params.conditioning == "image"
    # A choice against what the tensors show is kept, too.
    chosen = load(weights(VARIANTS["5B I2V"]), conditioning="control")
    host.comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), chosen)
    assert load(tmp_path / "saved.safetensors").model.model_config.params.conditioning == "control"
    with pytest.raises(ValueError, match="'inpaint' takes 17 channels.*has 16: choose auto or image or repeated_image"):
        load(path, conditioning="inpaint")
    with pytest.raises(ValueError, match="choose one of auto, none, image"):
        load(path, conditioning="picture")


@pytest.mark.parametrize("name", ["2B", "5B", "5B I2V", "1.5", "1.5 I2V", "Fun 2B InP"])
def test_every_family_equals_the_bare_core(host, weights, name):
    params = VARIANTS[name]
    start = noise(4)
    channels = torch.zeros(1, params.in_channels - 16, *start.shape[2:])
    values = {}
    if params.conditioning == "image":
        values = dict(concat_latent_image=torch.zeros_like(start))
        values["concat_latent_image"][:, :, 0] = random(1, 16, 4, 6)
        # 1.5-5B-I2V was trained on unscaled pictures.
        channels = values["concat_latent_image"] * (1.0 if name == "1.5 I2V" else 0.7)
    if params.conditioning == "inpaint":
        values = dict(concat_latent_image=random(*start.shape), concat_mask=torch.rand(1, 1, 4, 4, 6))
        channels = torch.cat([1 - values["concat_mask"], values["concat_latent_image"]], 1) * params.scaling_factor
    model = host.cogvideox.load_cogvideox(weights(params))
    ours = sample(host, model, start, values=values)
    assert apart(ours, reference(params, start, channels=channels)) < 1e-5


@pytest.mark.parametrize("name", ["5B", "1.5"])
def test_odd_sizes(host, weights, name):
    start = noise(4, height=5, width=7)
    ours = sample(host, host.cogvideox.load_cogvideox(weights(VARIANTS[name])), start)
    assert apart(ours, reference(VARIANTS[name], start)) < 1e-5


# What stands behind the noisy latent

@pytest.mark.parametrize("kind", ["image", "repeated_image", "control"])
def test_channels_of_a_picture_or_video(host, weights, kind):
    params, start = params_of(kind), noise(batch=2)
    clip = random(1, 16, 3, 4, 6)
    model = host.cogvideox.load_cogvideox(weights(params))
    wanted = 0.7 * (clip[:, :, :1].expand(-1, -1, 3, -1, -1) if kind == "repeated_image" else clip)
    ours = sample(host, model, start, values=dict(concat_latent_image=clip))
    assert apart(ours, reference(params, start, channels=wanted)) < 1e-5


def test_void_takes_its_32_channels(host, weights):
    params, start = params_of("void", "1.5"), noise(4)
    clip = random(1, 32, 4, 4, 6)
    ours = sample(host, host.cogvideox.load_cogvideox(weights(params)), start, values=dict(concat_latent_image=clip))
    assert apart(ours, reference(params, start, channels=0.7 * clip)) < 1e-5


def test_no_picture_is_text_alone(host, weights, caplog):
    params = params_of("image")
    caplog.set_level("INFO")
    ours = sample(host, host.cogvideox.load_cogvideox(weights(params)))
    assert apart(ours, reference(params, noise(), channels=torch.zeros(1, 16, 3, 4, 6))) < 1e-5
    assert [record.getMessage() for record in caplog.records].count(
        "CogVideoX: no picture or video was given to a model that takes one; it goes by the text alone") == 1


def test_conditioning_is_not_changed(host, weights):
    clip = random(1, 16, 3, 4, 6)
    values = dict(concat_latent_image=clip.clone())
    sample(host, host.cogvideox.load_cogvideox(weights(params_of("image", "1.5"))), values=values)
    assert torch.equal(values["concat_latent_image"], clip)


# The calling convention

def test_calling_convention(host, model):
    from comfy.patcher_extension import WrappersMP

    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(("options last", "sample_sigmas" in args[-1]))
        return executor(*args, **kwargs)

    def block(args, extra):
        options = args["transformer_options"]
        seen.append(("block", options["block_index"], options["total_blocks"], options["block_type"]))
        return extra["original_block"](args)

    plain = sample(host, model, steps=1)
    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    watched.set_model_patch_replace(block, "dit", "double_block", 1)
    assert torch.equal(sample(host, watched, steps=1), plain)
    assert seen[0] == ("options last", True) and ("block", 1, 2, "double") in seen

    skipped = model.clone()
    skipped.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    for kind in ("double_block", "post_input"):
        for part in ("img", "txt"):
            patched = model.clone()
            patched.set_model_patch(lambda args, part=part: args | {part: args[part] * 0}, kind)
            # After the last block the text is not looked at, after the first it is.
            assert apart(sample(host, patched, steps=1), plain) > 1e-3
    assert apart(sample(host, skipped, steps=1), plain) > 1e-3


def test_attention_can_be_replaced(host, model):
    seen = []

    def override(function, *args, **kwargs):
        seen.append(args[0].shape)
        return function(*args, **kwargs)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(sample(host, watched, steps=1), sample(host, model, steps=1))
    assert seen and seen[0][1] == TOKENS + 3 * 2 * 3  # text, then patches


def test_control_residuals_are_added(model):
    dit = model.model.diffusion_model
    x, t, c = noise(), torch.tensor([500.0]), text()[0][0]
    plain = dit(x, t, c)
    token = random(1, 18, 64)
    assert torch.equal(dit(x, t, c, control={"input": [None, 0 * token]}, transformer_options={}), plain)
    assert apart(dit(x, t, c, control={"input": [None, token]}, transformer_options={}), plain) > 1e-3


def test_sigmas_of_the_variant(host, weights):
    for name, middle in (("5B", 1.7746), ("2B", 3.0806)):
        model = host.cogvideox.load_cogvideox(weights(VARIANTS[name]))
        sampling = model.get_model_object("model_sampling")
        assert float(sampling.sigmas[500]) == pytest.approx(middle, rel=1e-4)
        assert float(sampling.sigma_max) == pytest.approx(4518.76, rel=1e-4)
        assert model.get_model_object("latent_format").scale_factor == VARIANTS[name].scaling_factor
        assert [int(sampling.timestep(sampling.sigmas[i])) for i in (0, 500, 999)] == [0, 500, 999]


@pytest.mark.parametrize("name, limit", [("fp32", 1e-6), ("bf16", 2e-2), ("fp16", 1e-2), ("fp8_e4m3fn", 0.3)])
def test_weight_dtypes(host, weights, model, name, limit):
    loaded = host.cogvideox.load_cogvideox(weights(), name)
    blocks = loaded.model.diffusion_model.transformer_blocks
    assert {p.dtype for p in blocks.parameters()} == {host.loading.WEIGHT_DTYPES[name]}
    assert apart(sample(host, loaded, steps=1, cfg=1.0), sample(host, model, steps=1, cfg=1.0)) < limit
    # fp16 is no type to compute in for a model trained in bf16; a CPU computes in fp32.
    assert loaded.model.manual_cast_dtype is (None if name == "fp32" else torch.float32)


@pytest.mark.parametrize("name", ["5B I2V", "1.5 I2V"])
def test_8_bits_leave_what_breaks_in_them(host, weights, name):
    params = VARIANTS[name]
    loaded, core = host.cogvideox.load_cogvideox(weights(params), "fp8_e4m3fn"), tinycog.transformer(params).state_dict()
    weights_of = loaded.model.diffusion_model.state_dict()
    narrow = {key for key, t in weights_of.items() if t.dtype == torch.float8_e4m3fn}
    assert narrow == {key for key in core if key.startswith("transformer_blocks.")
                      and not (params.patch_size_t and ".norm1." in key)}
    assert all(torch.equal(weights_of[key], core[key]) for key in core.keys() - narrow)


def test_half_precision_of_the_variant(host):
    half = {name: host.cogvideox.CogVideoXConfig(params).supported_inference_dtypes for name, params in VARIANTS.items()}
    assert half["2B"] == half["Fun 2B InP"] == [torch.float16, torch.bfloat16, torch.float32]
    assert half["5B"] == half["1.5 I2V"] == [torch.bfloat16, torch.float32]


def test_preview_colours_of_the_released_models(host):
    released = replace(PARAMS, text_embed_dim=4096)
    (factors, bias), (of_2b, _) = (host.previews.video_rgb_factors(params) for params in (
        released, replace(released, scaling_factor=1.15258426)))
    assert torch.tensor(factors).shape == (16, 3) and bias == [0, 0, 0]
    assert of_2b[3][1] / factors[3][1] == pytest.approx(0.7 / 1.15258426)


def test_preview_colours_fit_the_embedded_autoencoder(host):
    from sanacog.cogvideo_core.autoencoder import CogVideoVAE
    from sanacog.cogvideo_core.config import identify_autoencoder
    from sanacog.headless.installation import ROOT
    from sanacog.storage.checkpoints import open_checkpoint
    from sanacog.evaluation.drawn import clips

    file = open_checkpoint(ROOT / "models" / "vae" / "sanacog_tiny_cogvideox_vae.safetensors")
    vae = CogVideoVAE(identify_autoencoder(file.shapes, file.config).params).eval()
    vae.load_state_dict({key: t.float() for key, t in file.load().items()})
    generator = torch.Generator().manual_seed(9)
    pictures = clips.draw(clips.sample_scenes(8, generator), generator)
    factors, bias = (torch.tensor(part) for part in host.previews.video_rgb_factors(PARAMS))
    seen = (vae.encode(pictures)[:, :, 0] * 0.7).movedim(1, -1) @ factors + bias
    wanted = torch.nn.functional.avg_pool2d(pictures[:, :, 0], 8).movedim(1, -1)
    assert ((seen - wanted) ** 2).mean() < 0.15 * wanted.var()


@pytest.mark.parametrize("frames, places", [
    (1, [[0]]), (3, [[0, 1], [2, None]]), (9, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]), (21, [[0, 2, 5], [8, 10, 12], [15, 18, 20]])])
def test_preview_shows_the_whole_clip(host, frames, places):
    clip = random(2, 16, frames, 4, 6)
    rows = [torch.cat([torch.zeros(2, 16, 4, 6) if i is None else clip[:, :, i] for i in row], dim=3) for row in places]
    assert torch.equal(host.previews.contact_sheet(clip), torch.cat(rows, dim=2))


# LoRA, merging, saving

def test_stock_lora_keys(host, model):
    name = "diffusion_model.transformer_blocks.1.attn1.to_q"
    lora = {f"{name}.lora_A.weight": random(4, 64), f"{name}.lora_B.weight": random(64, 4)}
    changed, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert list(changed.patches) == [f"{name}.weight"]
    plain = sample(host, model)
    assert apart(sample(host, changed), plain) > 1e-3
    assert torch.equal(sample(host, model), plain)
    none, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 0.0, 0.0)
    assert torch.equal(sample(host, none), plain)


def test_merging(host, model, tmp_path):
    from nodes import NODE_CLASS_MAPPINGS  # noqa: F401  the host's nodes.py
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other = host.cogvideox.load_cogvideox(tinycog.save_transformer(tmp_path / "other.safetensors", seed=9))
    merge = ModelMergeSimple()
    assert torch.equal(sample(host, merge.merge(model, other, 1.0)[0]), sample(host, model))
    half, = merge.merge(model, other, 0.5)
    ours = sample(host, half, steps=1)
    core = tinycog.transformer()
    states = [tinycog.transformer(seed=seed).state_dict() for seed in (0, 9)]
    core.load_state_dict({key: (states[0][key] + states[1][key]) / 2 for key in states[0]})
    v = [core(noise(), torch.tensor([999.0]), random(1, TOKENS, TEXT_WIDTH, seed=seed)) for seed in (100, 101)]
    assert apart(ours, -(v[1] + 3 * (v[0] - v[1])) / 0.7) < 1e-5


def test_saved_model_loads_again(host, tmp_path):
    # Nothing in the tensors tells these: they have to survive.
    params = replace(params_of("image"), snr_shift_scale=2.0, scaling_factor=1.2, sample_height=20, norm_eps=1e-6,
                     use_rotary_positional_embeddings=False)
    first = host.cogvideox.load_cogvideox(tinycog.save_transformer(tmp_path / "first.safetensors", params))
    path = tmp_path / "ComfyUI_00001_.safetensors"
    host.comfy.sd.save_checkpoint(str(path), first)
    with safe_open(path, "pt") as file:
        assert all(key.startswith("model.diffusion_model.") for key in file.keys() if key != "v_pred")
    again = host.cogvideox.load_cogvideox(path)
    assert again.model.model_config.params == params
    assert torch.equal(sample(host, again), sample(host, first))


def test_patcher_can_be_made_again(model):
    function, arguments = model.cached_patcher_init
    again = function(*arguments, disable_dynamic=True)
    old, new = model.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert again.wrappers.keys() == model.wrappers.keys() and again.wrappers


def test_lazily_loaded_weights(host, monkeypatch):
    """Newer hosts make layers without weights and assign the file's tensors: nothing may look at a weight before."""
    memory = pytest.importorskip("comfy.memory_management", reason="this host has no dynamic VRAM")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.comfy.model_management, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    params = VARIANTS["5B I2V"]
    core = tinycog.transformer(params).state_dict()
    config = host.cogvideox.CogVideoXConfig(params)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    assert model.diffusion_model.proj_out.weight is None
    model.load_model_weights(dict(core), "", assign=True)
    loaded = model.diffusion_model.state_dict()
    assert loaded.keys() == core.keys() and all(torch.equal(loaded[key], core[key]) for key in core)

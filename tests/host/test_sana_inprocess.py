"""Sana's native objects inside the real host, on random tiny weights: the same numbers as the bare cores."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import tiny

PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import comfy.utils

    from sanacog.host import files, loading, samplers, sana, text, vae

    with torch.inference_mode():  # as the host runs its nodes
        yield SimpleNamespace(comfy=comfy, files=files, loading=loading, samplers=samplers, sana=sana, text=text, vae=vae)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return SimpleNamespace(folder=folder, sana=tiny.save_sana(folder / "sana.safetensors"),
                           gemma=tiny.save_gemma(folder / "gemma.safetensors"),
                           dcae=tiny.save_dcae(folder / "dcae.safetensors"))


@pytest.fixture
def model(host, weights):
    return host.sana.load_sana(weights.sana)


@pytest.fixture(scope="module")
def clip(host, weights):
    return host.text.load_text_encoder(weights.gemma)


@pytest.fixture(scope="module")
def vae(host, weights):
    return host.vae.load_dcae(weights.dcae)


def conditioning(count, width=tiny.CAPTION, seed=0, length=300):
    """What Sana Text Encode gives for a prompt of `count` tokens."""
    states = torch.zeros(1, length, width)
    states[:, :count] = torch.randn(1, count, width, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, length, dtype=torch.long)
    mask[:, :count] = 1
    return [[states, {"attention_mask": mask, "pooled_output": None}]]


def noise(batch=2, height=5, width=7, channels=32):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(7))


def sample(host, model, latent=None, positive=None, negative=None, cfg=4.5, sampler="euler", steps=3, start=None, **kw):
    start = noise() if start is None else start
    latent = torch.zeros_like(start) if latent is None else latent
    return host.comfy.sample.sample(model, start, steps, cfg, sampler, "simple",
                                    conditioning(9) if positive is None else positive,
                                    conditioning(1, seed=1) if negative is None else negative, latent,
                                    seed=0, disable_pbar=True, **kw)


def apart(a, b):
    """Relative L2 distance."""
    return float((a - b).norm() / b.norm())


# The model

def test_sampling_equals_the_bare_core(host, model):
    core = tiny.sana()
    start = noise()
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    assert sigmas.tolist() == pytest.approx([1.0, 0.857, 0.6, 0.0], abs=2e-3)  # flow shift 3
    x = start * sigmas[0]
    for s, t in zip(sigmas, sigmas[1:]):
        v = [core(x, (1000 * s).expand(2), c[0][0].expand(2, -1, -1), c[0][1]["attention_mask"].expand(2, -1))
             for c in (conditioning(1, seed=1), conditioning(9))]
        x = x + (t - s) * (v[0] + 4.5 * (v[1] - v[0]))
    ours = sample(host, model, start=start)
    assert apart(ours, x / 0.41407) < 1e-5


def test_masked_tokens_do_not_matter(host, model):
    dirty = conditioning(9)
    dirty[0][0][:, 9:] = 5.0
    assert apart(sample(host, model, positive=dirty), sample(host, model)) < 1e-6


def test_joined_conditioning_keeps_both_prompts(host, model):
    two = conditioning(5, seed=3)
    joined = [[torch.cat([conditioning(9)[0][0], two[0][0]], 1), conditioning(9)[0][1]]]  # ConditioningConcat
    both = [[torch.cat([conditioning(9)[0][0][:, :9], two[0][0][:, :5]], 1), {}]]
    assert apart(sample(host, model, positive=joined), sample(host, model, positive=both)) < 1e-5
    assert apart(sample(host, model, positive=joined), sample(host, model)) > 1e-3


def test_calling_convention(host, model):
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
    from comfy.patcher_extension import WrappersMP
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    watched.set_model_patch_replace(block, "dit", "double_block", 1)
    assert torch.equal(sample(host, watched, steps=1), plain)
    assert seen[0] == ("options last", True) and ("block", 1, 3, "double") in seen

    skipped = model.clone()
    skipped.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    assert apart(sample(host, skipped, steps=1), plain) > 1e-3

    patched = model.clone()
    patched.set_model_patch(lambda args: {"img": args["img"] * 0, "txt": args["txt"]}, "double_block")
    assert apart(sample(host, patched, steps=1), plain) > 1e-3


def test_control_residuals_are_added(model):
    dit = model.model.diffusion_model
    x, t, c = noise(1), torch.tensor([500.0]), conditioning(9)[0][0]
    plain = dit(x, t, c)
    token = torch.ones(1, 35, 64)
    same = dit(x, t, c, control={"input": [None, 0 * token]}, transformer_options={})
    assert torch.equal(same, plain)
    assert apart(dit(x, t, c, control={"input": [None, token]}, transformer_options={}), plain) > 1e-3


def test_flow_shift_and_timestep_multiplier_of_the_variant(host, tmp_path):
    import dataclasses

    path = tiny.save_sana(tmp_path / "a.safetensors", dataclasses.replace(tiny.SANA, flow_shift=6.0))
    sampling = host.sana.load_sana(path).get_model_object("model_sampling")
    assert sampling.shift == 6.0 and float(sampling.timestep(torch.tensor(0.5))) == 500
    sprint = dataclasses.replace(tiny.SANA, guidance_embeds=True, qk_norm=True)
    model = host.sana.load_sana(tiny.save_sana(tmp_path / "b.safetensors", sprint))
    assert float(model.get_model_object("model_sampling").timestep(torch.tensor(0.5))) == 0.5
    assert sample(host, model, cfg=1.0).isfinite().all()


def test_nvlabs_layout_loads_the_same(host, model, tmp_path):
    path = tiny.save_sana(tmp_path / "native.safetensors", layout="nvlabs")
    assert torch.equal(sample(host, host.sana.load_sana(path)), sample(host, model))


@pytest.mark.parametrize("name, limit", [("fp32", 1e-6), ("bf16", 2e-2), ("fp16", 1e-2), ("fp8_e4m3fn", 0.25)])
def test_weight_dtypes(host, weights, model, name, limit):
    loaded = host.sana.load_sana(weights.sana, name)
    assert {p.dtype for p in loaded.model.parameters()} == {host.loading.WEIGHT_DTYPES[name]}
    out = sample(host, loaded, cfg=1.0, steps=1)
    assert apart(out, sample(host, model, cfg=1.0, steps=1)) < limit
    # fp16 is no type to compute in for a model trained in bf16; a CPU computes in fp32.
    assert loaded.model.manual_cast_dtype is (None if name == "fp32" else torch.float32)


def test_memory_estimate(host, model):
    params = model.model.model_config.params
    numbers = 2 * params.width + 6 * params.hidden
    # tokens * numbers a token; 0.15 / 0.01 is the host's own margin without flash attention.
    assert model.model.memory_required([2, 32, 8, 8]) / (2 * 64 * numbers) == pytest.approx(15, rel=1e-3)


# LoRA, merging, saving

def test_stock_lora_keys(host, model):
    name = "diffusion_model.transformer_blocks.1.attn1.to_q"
    lora = {f"{name}.lora_A.weight": torch.randn(4, 64), f"{name}.lora_B.weight": torch.randn(64, 4)}
    changed, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert list(changed.patches) == [f"{name}.weight"]
    plain = sample(host, model)
    assert apart(sample(host, changed), plain) > 1e-3
    assert torch.equal(sample(host, model), plain)
    none, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 0.0, 0.0)
    assert torch.equal(sample(host, none), plain)


def saved(host, model, path, clip=None, vae=None):
    host.comfy.sd.save_checkpoint(str(path), model, clip, vae)
    return path


def test_saved_model_loads_again(host, tmp_path):
    import dataclasses

    # Nothing in the tensors tells shift, position code and clip: they have to survive.
    params = dataclasses.replace(tiny.SANA, flow_shift=6.0, interpolation_scale=2.0, clamp_fp16=True, sample_size=16)
    first = host.sana.load_sana(tiny.save_sana(tmp_path / "first.safetensors", params))
    path = saved(host, first, tmp_path / "ComfyUI_00001_.safetensors")
    with safe_open(path, "pt") as file:
        assert all(key.startswith("model.diffusion_model.") for key in file.keys())
    again = host.sana.load_sana(path)
    assert again.model.model_config.params == params
    assert torch.equal(sample(host, again), sample(host, first))


def test_whole_checkpoint_feeds_all_three_loaders(host, model, clip, vae, tmp_path):
    path = saved(host, model, tmp_path / "whole.safetensors", clip, vae)
    assert torch.equal(sample(host, host.sana.load_sana(path)), sample(host, model))
    again = host.text.encode_prompt(host.text.load_text_encoder(path), PROMPT, True)
    assert torch.equal(again[0][0], host.text.encode_prompt(clip, PROMPT, True)[0][0])
    z = noise(1)
    assert torch.equal(host.vae.load_dcae(path).decode(z), vae.decode(z))


def test_patcher_can_be_made_again(model, clip, vae):
    for patcher in (model, clip.patcher, vae.patcher):
        function, arguments = patcher.cached_patcher_init
        again = function(*arguments, disable_dynamic=True)
        old, new = patcher.model.state_dict(), again.model.state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


# Text

def reference(text, instruction):
    """transformers' Gemma-2 and the pipeline's own recipe: pad, encode with a mask, keep BOS and the last 299."""
    import sentencepiece

    from sanacog.sana_core.text import INSTRUCTION

    spm = sentencepiece.SentencePieceProcessor(model_proto=tiny.sentencepiece_model())
    prompt = (INSTRUCTION if instruction else "") + text
    length = 300 + (len(spm.encode(INSTRUCTION)) + 1 - 2 if instruction else 0)
    ids = ([2] + spm.encode(prompt))[:length]
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    ids = torch.tensor([ids + [0] * (length - len(ids))])
    states = tiny.gemma()(ids, attention_mask=mask).last_hidden_state
    keep = [0] + list(range(length - 299, length))
    return states[:, keep], mask[:, keep]


@pytest.mark.parametrize("text, instruction", [
    (PROMPT, True), (PROMPT, False), ("", False), ("一只猫 🐈‍⬛", True), ("word " * 10_000, True), ("word " * 10_000, False)])
def test_text_equals_transformers(host, clip, text, instruction):
    states, extra = host.text.encode_prompt(clip, text, instruction)[0]
    wanted, mask = reference(text.strip(), instruction)
    assert states.shape == (1, 300, tiny.CAPTION)
    assert torch.equal(extra["attention_mask"], mask)
    tokens = mask[0].bool()
    assert apart(states[:, tokens], wanted[:, tokens]) < 1e-5
    assert not states[:, ~tokens].any()


def test_stock_encoding_has_no_instruction(host, clip):
    stock = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0]  # what CLIPTextEncode does
    assert torch.equal(stock[0], host.text.encode_prompt(clip, PROMPT, False)[0][0])
    assert not torch.equal(stock[0], host.text.encode_prompt(clip, PROMPT, True)[0][0])


def test_weights_in_brackets_are_plain_text(clip):
    row = clip.tokenize("(word:1.2)", tokenizer_options={})["gemma2_2b"][0]
    assert {weight for _, weight in row} == {1.0}
    count = sum(token != 0 for token, _ in row)
    assert clip.tokenizer.decode([token for token, _ in row[:count]]) == "(word:1.2)"
    assert clip.tokenize("\\(word\\)") == clip.tokenize("(word)")
    assert clip.tokenizer.untokenize(row[:1])[0][0] == row[0]


def test_norms_keep_their_precision_in_bf16(host, tmp_path):
    half = {key: t.bfloat16() for key, t in tiny.gemma_weights().items()}
    clip = host.text.load_text_encoder(tiny.save_gemma(tmp_path / "half.safetensors", weights=half))
    states, extra = host.text.encode_prompt(clip, PROMPT, False)[0]
    tokens = extra["attention_mask"][0].bool()
    ids = [[token for token, _ in clip.tokenize(PROMPT)["gemma2_2b"][0] if token]]
    wanted = tiny.gemma({key: t.float() for key, t in half.items()})(torch.tensor(ids)).last_hidden_state
    assert apart(states[:, tokens], wanted) < 1e-5


@pytest.mark.parametrize("prefix", ["", "model.", "gemma2_2b.transformer.model."])
def test_key_prefixes(host, clip, tmp_path, prefix):
    again = host.text.load_text_encoder(tiny.save_gemma(tmp_path / "g.safetensors", prefix))
    assert torch.equal(host.text.encode_prompt(again, PROMPT, True)[0][0], host.text.encode_prompt(clip, PROMPT, True)[0][0])


def test_tokenizer_files(host, clip, tmp_path):
    wanted = host.text.encode_prompt(clip, PROMPT, True)[0][0]
    path = tiny.save_gemma(tmp_path / "bare.safetensors", tokenizer=False)
    with pytest.raises(FileNotFoundError, match="no tokenizer inside it.*tokenizer.model"):
        host.text.load_text_encoder(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picked = elsewhere / "my.model"
    picked.write_bytes(tiny.sentencepiece_model())
    assert torch.equal(host.text.encode_prompt(host.text.load_text_encoder(path, picked), PROMPT, True)[0][0], wanted)
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    assert torch.equal(host.text.encode_prompt(host.text.load_text_encoder(path), PROMPT, True)[0][0], wanted)
    picked.write_bytes(b"this is no tokenizer")
    with pytest.raises(ValueError, match="my.model: not a tokenizer"):
        host.text.load_text_encoder(path, picked)


def test_tokenizer_json(host, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "red": 4, "circle": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    path = tiny.save_gemma(tmp_path / "bare.safetensors", tokenizer=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    clip = host.text.load_text_encoder(path)
    assert [token for token, _ in clip.tokenize("red circle")["gemma2_2b"][0][:4]] == [2, 4, 5, 0]
    again = host.text.load_text_encoder(saved(host, host.sana.load_sana(tiny.save_sana(tmp_path / "s.safetensors")),
                                              tmp_path / "whole.safetensors", clip))
    assert again.tokenize("red circle") == clip.tokenize("red circle")


# The autoencoder

def test_vae_equals_the_core(vae):
    core = tiny.dcae()
    picture = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(5))
    latent = vae.encode(picture)
    assert latent.shape == (2, 32, 2, 3)
    assert apart(latent, core.encode(picture.movedim(-1, 1) * 2 - 1)) < 1e-5
    decoded = vae.decode(latent)
    wanted = ((core.decode(latent) + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert decoded.shape == (2, 64, 96, 3)
    assert apart(decoded, wanted) < 1e-5


def test_process_output_is_in_place_and_returned(vae):
    picture = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    out = vae.process_output(picture)
    assert out is picture and picture.tolist() == [0, 0, 0.5, 1, 1]


def test_odd_pictures_are_cropped(vae):
    picture = torch.rand(1, 70, 100, 3)
    assert torch.equal(vae.encode(picture), vae.encode(picture[:, 3:67, 2:98]))


def test_tiles(vae):
    z = noise(1, 6, 6) * 0.1
    whole, tiles = vae.decode(z), vae.decode_tiled(z, tile_x=4, tile_y=4, overlap=1)
    assert tiles.shape == whole.shape == (1, 192, 192, 3)
    assert (tiles - whole).abs().mean() < 0.1
    picture = torch.rand(1, 192, 192, 3)
    assert vae.encode_tiled(picture, tile_x=128, tile_y=128, overlap=32).shape == (1, 32, 6, 6)


# Samplers

def test_flow_dpm_solver_is_the_stochastic_solver_without_noise(host, model):
    """The host's dpmpp_2m_sde with eta 0, midpoint, is the same method (it, too, knows the flow's log-SNR)."""
    sigmas = torch.tensor([0.98, 0.9, 0.75, 0.5, 0.2, 0.0])
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(9), conditioning(1, seed=1))
    guider.set_cfg(2.0)

    def run(sampler):
        return guider.sample(noise(), torch.zeros_like(noise()), sampler, sigmas, disable_pbar=True, seed=0)

    theirs = host.comfy.samplers.ksampler("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "midpoint"})
    assert apart(run(host.samplers.flow_dpm_solver()), run(theirs)) < 1e-5
    assert apart(run(host.samplers.flow_dpm_solver()), run(host.comfy.samplers.ksampler("euler"))) > 1e-4


def test_preview_colours_fit_the_embedded_autoencoder(host):
    from sanacog.installation import ROOT
    from sanacog.training import shapes

    generator = torch.Generator().manual_seed(9)
    pictures = shapes.draw(shapes.sample_scenes(24, generator), generator)
    vae = host.vae.load_dcae(ROOT / "models" / "vae" / "sanacog_tiny_dcae.safetensors")
    latents = vae.encode((pictures.movedim(1, -1) + 1) / 2)
    factors, bias = (torch.tensor(part) for part in host.sana.rgb_factors(96))
    seen = (latents * 0.41407).movedim(1, -1) @ factors + bias
    wanted = torch.nn.functional.avg_pool2d(pictures, 32).movedim(1, -1)
    assert ((seen - wanted) ** 2).mean() < 0.15 * wanted.var()


def test_preview_colours_of_the_released_models(host):
    factors, bias = host.sana.rgb_factors(2304)
    assert torch.tensor(factors).shape == (32, 3) and all(-1 < value < 0 for value in bias)
    assert max(range(32), key=lambda i: abs(sum(factors[i]))) == 24  # brightness


# What is refused, and how

def test_text_of_another_model_is_refused(host, model):
    for width, name in ((4096, "T5-XXL"), (768, "CLIP-L"), (123, "123")):
        with pytest.raises(ValueError, match=f"{name}.*Load Sana Text Encoder"):
            sample(host, model, positive=conditioning(9, width))


def test_other_clips_are_refused(host):
    with pytest.raises(ValueError, match="Load Sana Text Encoder"):
        host.text.encode_prompt(SimpleNamespace(tokenizer=object()), "a cat", True)


@pytest.mark.parametrize("start, latent, message", [
    (noise(1, 64, 64, 4), torch.ones(1, 4, 64, 64), "Empty Sana Latent"),
    (noise(0), torch.zeros_like(noise(0)), "at least 1"),
    (noise(1), torch.full_like(noise(1), float("nan")), "NaN"),
])
def test_wrong_latents_are_refused(host, model, start, latent, message):
    with pytest.raises(ValueError, match=message):
        sample(host, model, latent, start=start)


def test_stock_empty_latent(host, model):
    """EmptyLatentImage reckons with 8 px: an old host's is refused with the remedy, a new one's is resized."""
    latent = torch.zeros(1, 4, 32, 32)  # 256 x 256 px, as this model wants
    if host.sana.corrects_empty_latents():
        fixed = host.comfy.sample.fix_empty_latent_channels(model, latent, 8)
        assert fixed.shape == (1, 32, 8, 8) and sample(host, model, fixed, start=noise(1, 8, 8)).isfinite().all()
        return
    fixed = host.comfy.sample.fix_empty_latent_channels(model, latent)
    with pytest.raises(ValueError, match="1024 x 1024 px.*256 x 256.*Empty Sana Latent"):
        sample(host, model, fixed, start=noise(1, 32, 32))


def test_empty_latent_sizes(host):
    assert host.sana.empty_latent(96, 64, 3)["samples"].shape == (3, 32, 2, 3)
    for arguments, name in (((100, 64, 1), "width"), ((96, 0, 1), "height"), ((96, -32, 1), "height"), ((96, 64, 0), "batch_size")):
        with pytest.raises(ValueError, match=name):
            host.sana.empty_latent(*arguments)


def test_latents_of_another_model_are_not_decoded(vae):
    for z, message in ((torch.zeros(1, 4, 8, 8), "another model"), (torch.full((1, 32, 2, 2), float("nan")), "NaN"),
                       (torch.zeros(1, 32, 0, 2), "empty")):
        with pytest.raises(ValueError, match=message):
            vae.decode(z)
    with pytest.raises(ValueError, match="at least 32 x 32"):
        vae.encode(torch.rand(1, 20, 64, 3))


def test_wrong_file_in_each_loader(host, weights):
    sana, gemma, dcae = host.sana.load_sana, host.text.load_text_encoder, host.vae.load_dcae
    for load, path, name in ((sana, weights.gemma, "Gemma 2"), (sana, weights.dcae, "DC-AE"),
                             (gemma, weights.sana, "Sana transformer"), (gemma, weights.dcae, "DC-AE"),
                             (dcae, weights.sana, "Sana transformer"), (dcae, weights.gemma, "Gemma 2")):
        with pytest.raises(ValueError, match=f"{path.name}.*{name}"):
            load(path)


def test_damaged_files(host, weights, tmp_path):
    key = "transformer_blocks.1.attn1.to_q.weight"
    for changes, message in (({key: None}, f"missing.*{key}"), ({"surprise.weight": torch.zeros(3)}, "unexpected.*surprise"),
                             ({key: torch.zeros(5, 5)}, f"shape.*{key}")):
        with pytest.raises(ValueError, match=message):
            host.sana.load_sana(tiny.save_sana(tmp_path / "bad.safetensors", **changes))
    with pytest.raises(ValueError, match="model.norm.weight"):
        host.text.load_text_encoder(tiny.save_gemma(tmp_path / "bad_gemma.safetensors", **{"model.norm.weight": None}))
    with pytest.raises(ValueError, match="weight_dtype"):
        host.sana.load_sana(weights.sana, "int3")


# Hosts with dynamic VRAM

def test_lazily_loaded_weights(host, weights, monkeypatch):
    """Newer hosts make layers without weights and assign the file's tensors: nothing may look at a weight before."""
    try:
        import comfy.memory_management as memory
    except ImportError:
        pytest.skip("this host has no dynamic VRAM")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.comfy.model_management, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    core = tiny.sana().state_dict()
    config = host.sana.SanaConfig(tiny.SANA)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    assert model.diffusion_model.proj_out.weight is None
    model.load_model_weights(dict(core), "", assign=True)
    loaded = model.diffusion_model.state_dict()
    assert loaded.keys() == core.keys() and all(torch.equal(loaded[key], core[key]) for key in core)

    vae = host.vae.load_dcae(weights.dcae)
    assert apart(vae.decode(noise(1)), (tiny.dcae().decode(noise(1)) / 2 + 0.5).clamp(0, 1).movedim(1, -1)) < 1e-5
    states, extra = host.text.encode_prompt(host.text.load_text_encoder(weights.gemma), PROMPT, True)[0]
    assert apart(states[:, :8], reference(PROMPT, True)[0][:, :8]) < 1e-5


# The loaders' lists

def test_lists_and_paths(host, weights, tmp_path, monkeypatch):
    import folder_paths

    models = tmp_path / "text_encoders"
    sharded = models / "gemma-sharded"
    sharded.mkdir(parents=True)
    (sharded / "model.safetensors.index.json").write_text("{}")
    (sharded / "model-00001-of-00002.safetensors").write_bytes(b"")
    (sharded / "tokenizer.model").write_bytes(b"x")
    (models / "one.safetensors").write_bytes(b"")
    pipelines = tmp_path / "diffusers"
    (pipelines / "Sana").mkdir(parents=True)
    (pipelines / "Sana" / "model_index.json").write_text("{}")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        **folder_paths.folder_names_and_paths,
        "text_encoders": ([str(models)], folder_paths.supported_pt_extensions),
        "diffusers": ([str(pipelines)], ["folder"])})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    files = host.files
    assert files.choices("text_encoders") == ["one.safetensors", "Sana", "gemma-sharded"]
    assert files.model_path("text_encoders", "gemma-sharded") == sharded
    assert files.model_path("text_encoders", "one.safetensors") == models / "one.safetensors"
    assert files.tokenizer_choices() == ["auto", "gemma-sharded/tokenizer.model"]
    for name in ("two.safetensors", "../diffusers/Sana", "/etc/hostname"):
        with pytest.raises(FileNotFoundError, match="no such model"):
            files.model_path("text_encoders", name)
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        files.tokenizer_path("other.model")
    before = files.fingerprint(sharded)
    assert before == files.fingerprint(sharded)
    (sharded / "model-00001-of-00002.safetensors").write_bytes(b"more")
    assert before != files.fingerprint(sharded)


def test_nodes_have_help_and_tooltips(host):
    from sanacog.nodes import NODES
    from sanacog.nodes import sana as module

    schemas = [node.define_schema() for node in NODES]
    assert [schema.node_id for schema in schemas if schema.category.startswith("Sana/")] == [
        "SanaCogLoadSanaModel", "SanaCogLoadSanaTextEncoder", "SanaCogLoadDCAE", "SanaCogSanaTextEncode",
        "SanaCogEmptySanaLatent", "SanaCogFlowDPMSolver", "SanaCogSanaResolution"]
    from pathlib import Path
    pack = Path(module.__file__).parents[1]
    for schema in schemas:
        assert schema.category.startswith(("Sana/", "CogVideoX/")) and schema.description
        assert all(port.tooltip for port in schema.inputs + schema.outputs), schema.node_id
        assert (pack / "web" / "docs" / f"{schema.node_id}.md").is_file()

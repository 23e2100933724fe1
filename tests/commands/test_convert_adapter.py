"""LoRAs between the layouts: the same change of every layer, whatever a file calls it, and nothing lost without a word."""

import json
import re

import pytest
import safetensors.torch
import torch

from sanacog.cogvideo_core import checkpoint as cogvideo_checkpoint
from sanacog.commands import convert
from sanacog.commands.convert_adapter import convert_adapter, is_adapter
from sanacog.storage.checkpoints import open_checkpoint

from ..host import tiny_cogvideox

R, ALPHA = 4, 2.0


def pairs(names, width=64, rank=R, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(rank, width, generator=g), torch.randn(width, rank, generator=g)) for name in names}


def attention(layers):
    return [f"transformer_blocks.{i}.attn1.{part}" for i in range(layers) for part in ("to_q", "to_k", "to_v", "to_out.0")]


def peft_folder(path, changes, **config):
    path.mkdir()
    tensors = {f"base_model.model.{name}.lora_{part}.weight": t.contiguous()
               for name, pair in changes.items() for part, t in zip("AB", pair)}
    safetensors.torch.save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": R, "lora_alpha": ALPHA, "peft_type": "LORA"} | config))
    return path


def sat_file(path, changes, **more):
    """As SAT's own training saves it: its mixin's names, within the whole model's."""
    places = {"attn1.to_q": "query_key_value.matrix_{}.0", "attn1.to_k": "query_key_value.matrix_{}.1",
              "attn1.to_v": "query_key_value.matrix_{}.2", "attn1.to_out.0": "dense.matrix_{}.0"}
    tensors = {}
    for name, (A, B) in changes.items():
        _, number, part = name.split(".", 2)
        for letter, t in (("A", A), ("B", B)):
            tensors[f"model.diffusion_model.transformer.layers.{number}.attention.{places[part].format(letter)}"] = t
    torch.save({"module": tensors | more}, path)
    return path


def change_of(path, prefix="transformer."):
    """{layer: scale * B A} as diffusers computes it from the file."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    out = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key[len(prefix):-len(".lora_A.weight")]
            rank = tensors[key].shape[0]
            alpha = config["transformer.alpha_pattern"].get(name, config["transformer.lora_alpha"])
            assert config["transformer.rank_pattern"].get(name, config["transformer.r"]) == rank
            out[name] = alpha / rank * tensors[f"{prefix}{name}.lora_B.weight"].flatten(1) @ tensors[key].flatten(1)
    return out


def assert_same(got, changes, scale):
    assert set(got) == set(changes)
    for name, (A, B) in changes.items():
        torch.testing.assert_close(got[name], scale * B @ A, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layers", [30, 42])
def test_sat_to_diffusers_and_back_is_exact(tmp_path, layers):
    changes = pairs(attention(layers), width=8)
    base = "model.diffusion_model.transformer.layers.0.attention.query_key_value.original.weight"
    source = sat_file(tmp_path / "sat.pt", changes, **{base: torch.zeros(24, 8)})
    said = convert_adapter(source, tmp_path / "d.safetensors")
    assert f"{4 * layers} layers, rank 4, scale 0.25 (SAT's alpha of 1)" in said[0]
    assert_same(change_of(tmp_path / "d.safetensors"), changes, 1 / R)
    convert_adapter(tmp_path / "d.safetensors", tmp_path / "back.pt", "native")
    got = torch.load(tmp_path / "back.pt", weights_only=True)["module"]
    want = torch.load(source, weights_only=True)["module"]
    assert set(got) == {key for key in want if "matrix" in key} and len(got) == 8 * layers
    assert all(torch.equal(got[key], want[key]) for key in got)


@pytest.mark.parametrize("names", [attention(2), ["transformer_blocks.0.attn2.to_q", "transformer_blocks.1.ff.conv_point"]])
def test_peft_to_diffusers_to_kohya_and_back(tmp_path, names):
    changes = pairs(names)
    convert_adapter(peft_folder(tmp_path / "peft", changes), tmp_path / "d.safetensors")
    assert_same(change_of(tmp_path / "d.safetensors"), changes, ALPHA / R)
    convert_adapter(tmp_path / "d.safetensors", tmp_path / "k.safetensors", "kohya")
    kohya = safetensors.torch.load_file(tmp_path / "k.safetensors")
    stem = "lora_unet_" + names[0].replace(".", "_")
    assert kohya[f"{stem}.alpha"] == R and len(kohya) == 3 * len(names)
    convert_adapter(tmp_path / "k.safetensors", tmp_path / "d2.safetensors", dtype=torch.bfloat16)
    for name, change in change_of(tmp_path / "d2.safetensors").items():
        assert change.dtype == torch.bfloat16
        A, B = changes[name]
        torch.testing.assert_close(change.float(), ALPHA / R * B @ A, rtol=0.05, atol=0.05)


def test_rank_stabilised_alpha(tmp_path):
    changes = pairs(attention(1))
    convert_adapter(peft_folder(tmp_path / "peft", changes, use_rslora=True), tmp_path / "d.safetensors")
    assert_same(change_of(tmp_path / "d.safetensors"), changes, ALPHA / R**0.5)


def test_nvlabs_fused_projections(tmp_path):
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(R, 64, generator=g), torch.randn(192, R, generator=g)
    tensors = {"blocks.0.attn.qkv.lora_A.weight": A, "blocks.0.attn.qkv.lora_B.weight": B}
    safetensors.torch.save_file(tensors, tmp_path / "n.safetensors")
    convert_adapter(tmp_path / "n.safetensors", tmp_path / "d.safetensors", alpha=2.0)
    assert_same(change_of(tmp_path / "d.safetensors"),
                {f"transformer_blocks.0.attn1.to_{part}": (A, b) for part, b in zip("qkv", B.chunk(3))}, 2.0 / R)


SANA = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k", "transformer_blocks.0.attn1.to_v",
        "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.attn2.to_v", "transformer_blocks.1.attn1.to_k",
        "transformer_blocks.1.attn2.to_q", "transformer_blocks.1.ff.conv_inverted", "proj_out"]


def test_nvlabs_and_back_is_exact(tmp_path):
    """A network of NVlabs' names that is changed by the file is the one that is changed layer by layer."""
    changes = pairs(SANA)
    convert_adapter(peft_folder(tmp_path / "p", changes), tmp_path / "d.safetensors")
    convert_adapter(tmp_path / "d.safetensors", tmp_path / "n.safetensors", "nvlabs")
    tensors = safetensors.torch.load_file(tmp_path / "n.safetensors")
    want = {name: ALPHA / R * B @ A for name, (A, B) in changes.items()}
    none = torch.zeros(64, 64)
    qkv = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
    places = (
        (0, "attn.qkv", qkv), (1, "attn.qkv", qkv),
        (0, "cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v")), (0, "attn.proj", ("attn1.to_out.0",)),
        (1, "cross_attn.q_linear", ("attn2.to_q",)), (1, "mlp.inverted_conv.conv", ("ff.conv_inverted",)))
    stacks = {f"blocks.{i}.{theirs}": torch.cat([want.get(f"transformer_blocks.{i}.{part}", none) for part in ours])
              for i, theirs, ours in places}
    stacks["final_layer.linear"] = want["proj_out"]
    assert len(tensors) == 2 * len(stacks)
    for name, change in stacks.items():
        A, B = (tensors[f"{name}.lora_{part}.weight"] for part in "AB")
        assert A.dim() == (4 if "conv" in name else 2)
        torch.testing.assert_close(B.flatten(1) @ A.flatten(1), change, rtol=1e-6, atol=1e-6)
    convert_adapter(tmp_path / "n.safetensors", tmp_path / "back.safetensors")
    back, first = (safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("back", "d"))
    assert back.keys() == first.keys() and all(torch.equal(back[key], first[key]) for key in first)
    convert_adapter(tmp_path / "n.safetensors", tmp_path / "again.safetensors", "nvlabs")
    again = safetensors.torch.load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in again)


@pytest.mark.parametrize("names, width, said", [
    ([*SANA, "transformer_blocks.0.ff.net.2"], 64, "no place for transformer_blocks.0.ff.net.2. Take diffusers or kohya"),
    (attention(1), 1920, "no place for transformer_blocks.0.attn1.to_k, .* native for CogVideoX")])
def test_what_nvlabs_have_no_place_for(tmp_path, names, width, said):
    convert_adapter(peft_folder(tmp_path / "p", pairs(names, width=width)), tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=said):
        convert_adapter(tmp_path / "d.safetensors", tmp_path / "n.safetensors", "nvlabs")
    assert not (tmp_path / "n.safetensors").exists()


def test_ranks_that_differ(tmp_path):
    changes = pairs(attention(1)) | pairs(["transformer_blocks.1.attn1.to_q"], rank=2)
    convert_adapter(peft_folder(tmp_path / "p", changes, rank_pattern={"transformer_blocks.1.attn1.to_q": 2},
                                alpha_pattern={"transformer_blocks.1.attn1.to_q": 1.0}), tmp_path / "d.safetensors")
    assert_same(change_of(tmp_path / "d.safetensors"), changes, 0.5)
    with pytest.raises(ValueError, match="one rank for all layers, and this LoRA has 2, 4"):
        convert_adapter(tmp_path / "d.safetensors", tmp_path / "s.pt", "native")
    assert not list(tmp_path.glob("s*"))


@pytest.mark.parametrize("names, width, said", [
    ([*attention(1), "transformer_blocks.0.ff.net.2"], 64, r"changes transformer_blocks.0.ff.net.2. Train one with lora.targets attention\+out"),
    (attention(1), 2240, "transformer_blocks.0.attn1.to_k, .* is of a Sana, 2240 wide. Take diffusers or kohya, or nvlabs")])
def test_what_sat_has_no_place_for(tmp_path, names, width, said):
    convert_adapter(peft_folder(tmp_path / "p", pairs(names, width=width)), tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=said):
        convert_adapter(tmp_path / "d.safetensors", tmp_path / "s.pt", "native")
    assert not (tmp_path / "s.pt").exists()


def test_a_projection_that_is_not_changed_is_zero_in_sat(tmp_path):
    changes = pairs(attention(2)[:-1])
    convert_adapter(peft_folder(tmp_path / "p", changes), tmp_path / "s.safetensors", "native")
    tensors = safetensors.torch.load_file(tmp_path / "s.safetensors")
    stem = "model.diffusion_model.transformer.layers.{}.attention.dense.matrix_B.0"
    assert len(tensors) == 16 and not tensors[stem.format(1)].any() and tensors[stem.format(0)].any()


@pytest.mark.parametrize("extra, said", [
    ({"transformer.transformer_blocks.0.attn9.to_q.lora_A.weight": torch.zeros(4, 64)}, "attn9.to_q.lora_A.weight would be lost"),
    ({"transformer.transformer_blocks.0.attn1.to_q.lora_magnitude_vector": torch.ones(64)}, "DoRA"),
    ({"transformer.transformer_blocks.1.attn1.to_q.lora_A.weight": torch.zeros(4, 64)}, "only one of the two"),
    ({"transformer.transformer_blocks.1.attn1.to_q.lora_A.weight": torch.full((4, 64), torch.nan),
      "transformer.transformer_blocks.1.attn1.to_q.lora_B.weight": torch.zeros(64, 4)}, "holds NaN"),
])
def test_nothing_is_lost_without_a_word(tmp_path, extra, said):
    tensors = {f"transformer.{name}.lora_{part}.weight": t
               for name, pair in pairs(attention(1)).items() for part, t in zip("AB", pair)}
    safetensors.torch.save_file(tensors | extra, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=said):
        convert_adapter(tmp_path / "a.safetensors", tmp_path / "o.safetensors", "kohya")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_command(tmp_path, capsys):
    source = sat_file(tmp_path / "sat.pt", pairs(attention(1)))
    assert convert.main([str(source), "--output", str(tmp_path / "o.safetensors")]) == 0
    assert "LoRA of 4 layers" in capsys.readouterr().out
    assert convert.main([str(source), "--output", str(tmp_path / "o.safetensors")]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
    assert convert.main([str(source), "--output", str(tmp_path / "p.safetensors"), "--layout", "comfy"]) == 1
    assert "no layout comfy of a LoRA" in capsys.readouterr().err
    assert convert.main([str(source), "--output", str(tmp_path / "p.safetensors"), "--quantize", "int8"]) == 1
    assert "is not quantised" in capsys.readouterr().err
    assert convert.main([str(source), "--output", str(tmp_path / "p.bin")]) == 1
    assert "has to end in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_its_lora_merged(tmp_path, capsys, dtype):
    base = {key: t.to(dtype) for key, t in tiny_cogvideox.transformer().state_dict().items()}
    layers = tiny_cogvideox.PARAMS.num_layers
    changes = pairs(attention(layers), width=base["transformer_blocks.0.attn1.to_q.weight"].shape[0])
    model = {re.sub(r"(query_key_value|dense)\.(weight|bias)$", r"\1.original.\2", key) if ".attention." in key else key: t
             for key, t in cogvideo_checkpoint.from_canonical(base, "sat").items()}
    source = sat_file(tmp_path / "sat.pt", changes, **{f"model.diffusion_model.{key}": t for key, t in model.items()},
                      **{"first_stage_model.encoder.conv_in.conv.weight": torch.zeros(2, 2)})
    assert convert.main([str(source), "--merge", "--output", str(tmp_path / "m.safetensors")]) == 0
    assert f"with its LoRA of {4 * layers} layers" in capsys.readouterr().out
    got = cogvideo_checkpoint.to_canonical(open_checkpoint(tmp_path / "m.safetensors").load(), "diffusers")
    assert got.keys() == base.keys()
    for name, (A, B) in changes.items():
        weight = f"{name}.weight"
        torch.testing.assert_close(got[weight], (base[weight].float() + B @ A / R).to(dtype), rtol=1e-6, atol=1e-6)
        base.pop(weight), got.pop(weight)
    assert all(torch.equal(got[key], base[key]) for key in base)


def test_nothing_to_merge(tmp_path):
    source = sat_file(tmp_path / "sat.pt", pairs(attention(1)))
    with pytest.raises(ValueError, match="leave --merge away"):
        convert.convert(source, tmp_path / "m.safetensors", merge=True)
    assert not list(tmp_path.glob("m*"))


def test_models_are_none(tmp_path):
    assert not is_adapter({"transformer_blocks.0.attn1.to_q.weight": (4, 4)})

"""python run.py convert: layouts there and back, number types, quantised files, and what it refuses."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from sanacog.cogvideo_core import checkpoint as cogvideo_checkpoint
from sanacog.commands.convert import convert, main
from sanacog.kernels import quant_layers
from sanacog.sana_core import checkpoint as sana_checkpoint
from sanacog.sana_core.config import identify
from sanacog.storage.checkpoints import open_checkpoint

from ..host import tiny, tiny_cogvideox

# Nothing in the tensors tells of these three.
PARAMS = replace(tiny.SANA, flow_shift=6.0, interpolation_scale=2.0, clamp_fp16=True)


@pytest.fixture
def sana(tmp_path):
    return tiny.save_sana(tmp_path / "sana.safetensors", PARAMS)


@pytest.fixture
def cogvideox(tmp_path):
    return tiny_cogvideox.save_transformer(tmp_path / "cogvideox.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("family, layout", [("sana", "native"), ("cogvideox", "native"), ("cogvideox", "comfy")])
def test_layouts_there_and_back(request, tmp_path, family, layout):
    source = request.getfixturevalue(family)
    convert(source, tmp_path / "other.safetensors", layout)
    convert(tmp_path / "other.safetensors", tmp_path / "back.safetensors")
    first, other, back = (open_checkpoint(path).load() for path in (source, tmp_path / "other.safetensors",
                                                                    tmp_path / "back.safetensors"))
    assert same(back, first)
    checkpoint = sana_checkpoint if family == "sana" else cogvideo_checkpoint
    name = {"sana": "nvlabs", "cogvideox": "sat"}[family] if layout == "native" else layout
    canonical = checkpoint.to_canonical(first, "diffusers")
    assert same(other, checkpoint.from_canonical(canonical, name)) and other.keys() != first.keys()


def test_pickles_and_sharded_folders(sana, tmp_path):
    tensors = sana_checkpoint.from_canonical(tiny.sana(PARAMS).state_dict(), "nvlabs")
    folder = tmp_path / "NVlabs"
    folder.mkdir()
    torch.save({"state_dict": tensors}, folder / "Sana.pth")
    (folder / "config.json").write_text(json.dumps(asdict(PARAMS)))
    convert(folder / "Sana.pth", tmp_path / "new.safetensors")
    assert same(open_checkpoint(tmp_path / "new.safetensors").load(), open_checkpoint(sana).load())


def test_what_tensors_do_not_tell_is_kept(sana, tmp_path):
    convert(sana, tmp_path / "new.safetensors", "native", torch.bfloat16)
    new = open_checkpoint(tmp_path / "new.safetensors")
    assert set(new.dtypes.values()) == {torch.bfloat16}
    assert identify(new.shapes, new.config).params == PARAMS


def test_a_model_saved_from_comfyui(tmp_path):
    """Its config is a tensor, its names have a prefix."""
    tensors = {"model.diffusion_model." + key: t for key, t in tiny.sana().state_dict().items()}
    text = json.dumps(asdict(PARAMS)).encode()
    tensors["model.diffusion_model.sana_config"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    save_file(tensors | {"vae.x": torch.zeros(3)}, tmp_path / "saved.safetensors")
    convert(tmp_path / "saved.safetensors", tmp_path / "new.safetensors")
    new = open_checkpoint(tmp_path / "new.safetensors")
    assert identify(new.shapes, new.config).params == PARAMS
    assert same(sana_checkpoint.to_canonical(new.load(), "diffusers"), tiny.sana().state_dict())


@pytest.mark.parametrize("kind, size", [("int8", 0.62), ("fp8", 0.62), ("nvfp4", 0.55)])
@pytest.mark.parametrize("family", ["sana", "cogvideox"])
def test_quantised(request, tmp_path, family, kind, size):
    source = request.getfixturevalue(family)
    lines = convert(source, tmp_path / "small.safetensors", quantize=kind)
    small = open_checkpoint(tmp_path / "small.safetensors")
    tensors, entries = quant_layers.read_layers(small.load(), quant_layers.from_metadata(small.metadata))
    network = tiny.sana(PARAMS) if family == "sana" else tiny_cogvideox.transformer()
    back = quant_layers.without_layers(tensors, entries, torch.float32)
    for key, tensor in network.state_dict().items():
        error = float((back[key] - tensor).norm() / tensor.norm())
        assert 1e-3 < error < 0.12 if key.removesuffix(".weight") in entries else error == 0, key
    assert (tmp_path / "small.safetensors").stat().st_size < size * source.stat().st_size
    assert any("quantised" in line for line in lines) and any("no time to gain" in line for line in lines)
    assert any("full precision" in line for line in lines) == (kind == "fp8")
    with pytest.raises(ValueError, match="quantised already"):
        convert(tmp_path / "small.safetensors", tmp_path / "smaller.safetensors", quantize=kind)


def test_a_block_at_a_time_and_interruptible(sana, tmp_path):
    seen = []

    def interrupted(parts):
        for part in parts:
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(list(part))
            yield part

    with pytest.raises(KeyboardInterrupt):
        convert(sana, tmp_path / "new.safetensors", "native", progress=interrupted)
    assert "patch_embed.proj.weight" in seen[0] and all(key.startswith("transformer_blocks.0.") for key in seen[1])
    assert [file.name for file in tmp_path.iterdir()] == ["sana.safetensors"]


def test_refusals(sana, cogvideox, tmp_path, capsys):
    (tmp_path / "there.safetensors").write_text("mine")
    for source, output, options, message in (
            (sana, "x.safetensors", ["--layout", "comfy"], "no layout comfy"),
            (sana, "x.safetensors", ["--layout", "native", "--quantize", "int8"], "diffusers' names"),
            (sana, "x.pth", [], "has to end so"), (sana, "there.safetensors", [], "nothing is overwritten"),
            (tmp_path / "none.safetensors", "x.safetensors", [], "no such file")):
        assert main([str(source), "--output", str(tmp_path / output), *options]) == 1
        assert message in capsys.readouterr().err
    dcae = tiny.save_dcae(tmp_path / "dcae.safetensors")
    assert main([str(dcae), "--output", str(tmp_path / "x.safetensors")]) == 1
    assert "DC-AE" in capsys.readouterr().err
    assert (tmp_path / "there.safetensors").read_text() == "mine" and not (tmp_path / "x.safetensors").exists()
    assert main([str(cogvideox), "--output", str(tmp_path / "x.safetensors"), "--dtype", "fp16"]) == 0
    assert "CogVideoX" in capsys.readouterr().out


def test_a_neighbours_config_is_no_config_of_this_file(cogvideox, tmp_path, capsys):
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(open_checkpoint(cogvideox).load(), folder / "mine.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_layers": 30, "use_rotary_positional_embeddings": False}))
    assert main([str(folder / "mine.safetensors"), "--output", str(tmp_path / "out.safetensors")]) == 0
    assert "warning: the config.json beside it is of another model: it is ignored (num_layers 30" in capsys.readouterr().out
    config = json.loads(open_checkpoint(tmp_path / "out.safetensors").metadata["config"])
    assert config["use_rotary_positional_embeddings"] and config["snr_shift_scale"] == 1.0


def test_prefixes_broken_configs_and_lora_checkpoints(sana, cogvideox, tmp_path, capsys):
    tensors = open_checkpoint(sana).load()
    save_file({f"module.transformer.{key}": t for key, t in tensors.items()}, tmp_path / "wrapped.safetensors",
              metadata={"config": json.dumps(asdict(PARAMS))})
    convert(tmp_path / "wrapped.safetensors", tmp_path / "plain.safetensors")
    assert same(open_checkpoint(tmp_path / "plain.safetensors").load(), tensors)

    def refusal(state_dict, config="{}"):
        path = tmp_path / "refused.safetensors"
        save_file({key: t.contiguous() for key, t in state_dict.items()}, path, metadata={"config": config})
        assert main([str(path), "--output", str(tmp_path / "never.safetensors")]) == 1
        assert not (tmp_path / "never.safetensors").exists()
        return capsys.readouterr().err

    assert "flow_shift is 'much', expected a number" in refusal(tensors, json.dumps(asdict(PARAMS) | {"flow_shift": "much"}))
    bad = {"model.diffusion_model.sana_config": torch.tensor(list(b"{"), dtype=torch.uint8)}
    assert "sana_config is no config in JSON" in refusal({f"model.diffusion_model.{key}": t for key, t in tensors.items()} | bad)
    sat = cogvideo_checkpoint.from_canonical(open_checkpoint(cogvideox).load(), "sat")
    layer = "transformer.layers.0.attention.dense"
    sat |= {f"{layer}.original.weight": sat.pop(f"{layer}.weight"), f"{layer}.matrix_A.0": torch.zeros(2, 2)}
    assert "dense" not in (said := refusal(sat)) and "attn1.to_out.0 there is only one of the two matrices" in said  # its LoRA is meant

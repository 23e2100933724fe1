"""SANA-Video's files in other layouts and number types: what run.py convert and Quantize write, the loader reads."""

import re

import pytest
import torch

from sanacog.commands.convert import convert
from sanacog.kernels.quant import FORMATS
from sanacog.kernels.quant_layers import reason_to_keep
from sanacog.sana_core.video_checkpoint import from_canonical, network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams
from sanacog.sana_core.video_precision import KEPT
from sanacog.storage.checkpoints import open_checkpoint

from .video_model import FIRST, SECOND, apart, conditioning, core, host, noise, sample, save, weights  # noqa: F401

FULL = {"2B": SanaVideoParams(20, 20, 20, 112), "2.0": SanaVideo2Params(32, 2560, 20, tuple(range(3, 32, 4)))}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("params", [FIRST, SECOND], ids=["first", "2.0"])
def test_there_and_back(tmp_path, params):
    source = save(tmp_path / "a.safetensors", params)
    lines = convert(source, tmp_path / "b.safetensors", "native")
    assert "SANA-Video" in lines[0]
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    first, other, back = (open_checkpoint(tmp_path / f"{name}.safetensors").load() for name in "abc")
    assert same(first, back) and other.keys() == from_canonical(core(params).state_dict(), "nvlabs").keys() != first.keys()


def test_a_trainers_pickle(host, tmp_path, weights):
    """LongSANA's released files: the network under model., inside what its trainer saved."""
    tensors = {f"model.{key}": t for key, t in from_canonical(core().state_dict(), "nvlabs").items()}
    folder = tmp_path / "LongSANA_2B_480p_self_forcing"
    folder.mkdir()
    path = folder / "LongSANA_2B_480p_self_forcing.pt"
    torch.save({"generator": tensors, "critic": {"model.other.weight": torch.ones(2)}, "step": 3}, path)
    from dataclasses import asdict
    import json

    (folder / "config.json").write_text(json.dumps({name: value for name, value in asdict(FIRST).items() if name != "causal"}))
    model = host.video.load_sana_video(path)
    assert model.model.model_config.params.causal
    assert apart(sample(host, model, noise()), sample(host, host.video.load_sana_video(weights()), noise())) < 1e-6


@pytest.mark.parametrize("kind", FULL)
def test_every_large_layer_is_quantised_or_kept_for_a_reason(kind):
    layers = [name for name, module in network(FULL[kind], device="meta").named_modules() if isinstance(module, torch.nn.Linear)]
    kept = {name for name in layers if reason_to_keep(name, KEPT)}
    blocks = FULL[kind].num_layers
    # Attention's q, k, v and out, 2.0's gate, cross-attention's q and out, and the feed-forward network.
    assert len(layers) - len(kept) == blocks * (4 + 2 + 2 if kind == "2B" else 5 + 2 + 3)
    assert all(any(re.search(pattern, name) for name in layers) or pattern.startswith("^patch") or kind == "2B" for pattern, _ in KEPT)


@pytest.mark.parametrize("kind", list(FORMATS))
@pytest.mark.parametrize("params", [FIRST, SECOND], ids=["first", "2.0"])
def test_quantised_files(host, tmp_path, weights, params, kind):
    """Nearer to the model than a file whose kept layers are quantised too would be; read as any other."""
    lines = convert(weights(params), tmp_path / "small.safetensors", quantize=kind)
    assert any("no time to gain" in line for line in lines)
    plain = sample(host, host.video.load_sana_video(weights(params)), noise(params))
    assert 1e-4 < apart(sample(host, host.video.load_sana_video(tmp_path / "small.safetensors", "fp32"), noise(params)), plain) < 0.6


def test_the_node_quantises(host, tmp_path, weights):
    import folder_paths

    from sanacog.host.quantise import save_quantised

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    try:
        model = host.video.load_sana_video(weights())
        report = save_quantised(model, "fp8", "diffusion_models/small", conditioning(9), conditioning(1),
                                host.video.empty_latent(model, (2, 4, 6)), steps=1)
    finally:
        folder_paths.set_output_directory(before)
    path = tmp_path / re.match(r"(.*\.safetensors), [\d.,]+ MB\n", report)[1]
    found = host.video.load_sana_video(path, "fp32")
    assert found.model.model_config.params == FIRST
    assert any(key.endswith("input_scale") for key in open_checkpoint(path).shapes)  # calibrated

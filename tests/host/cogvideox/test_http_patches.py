"""LoRA, merging, saving, number types and EasyCache with CogVideoX, over HTTP on random tiny models."""

import pytest
from safetensors.torch import load_file

from .. import tiny_cogvideox as tiny
from ..test_stock_nodes import apart, node, save_lora, with_lora
from .http_graphs import draw, load, plain, random_models, sampler  # noqa: F401  fixtures among them

pytestmark = pytest.mark.usefixtures("random_models")


@pytest.fixture(scope="module")
def lora(server):
    return save_lora(server, "random_cogvideox.safetensors", tiny.PARAMS.num_layers, tiny.PARAMS.width)


def test_lora(server, plain, lora):
    changed = draw(server, **with_lora(lora, 1.0), sampler=sampler("lora"))
    assert apart(changed, plain) > 0.001
    assert apart(draw(server, **with_lora(lora, 0.0), sampler=sampler("lora")), plain) < 1e-6
    assert apart(draw(server, save=node("SaveImage", images=["decode", 0], filename_prefix="again")), plain) < 1e-6


def test_merging(server, plain, lora):
    def merged(ratio):
        return draw(server, **with_lora(lora, 1.0), sampler=sampler("merge"),
                    merge=node("ModelMergeSimple", model1=["model", 0], model2=["lora", 0], ratio=ratio))

    other = draw(server, **with_lora(lora, 1.0), sampler=sampler("lora"))
    assert apart(merged(1.0), plain) < 1e-6
    assert apart(merged(0.0), other) < 0.005
    half = merged(0.5)
    assert apart(half, plain) > 0.0005 and apart(half, other) > 0.0005


def test_saved_model_loads_again(server, plain):
    server.run_prompt({"model": load(),
                       "save": node("ModelSave", model=["model", 0], filename_prefix="diffusion_models/saved_cogvideox")})
    name = "saved_cogvideox_00001_.safetensors"
    path = server.base / "output" / "diffusion_models" / name
    # "v_pred" is the host's own mark of a model that predicts v.
    assert all(key.startswith("model.diffusion_model.") for key in load_file(path).keys() - {"v_pred"})
    assert apart(draw(server, model=load(name)), plain) < 1e-6


@pytest.mark.parametrize("name, limit", [("fp8_e4m3fn", 0.3), ("bf16", 0.1)])
def test_weight_dtypes(server, name, limit):
    full = draw(server, model=load(weight_dtype="fp32"))
    assert 0 < apart(draw(server, model=load(weight_dtype=name)), full) < limit


def test_easy_cache(server, plain):
    before = len(server.log())
    video = draw(server, sampler=sampler("easy", steps=20),
                 easy=node("EasyCache", model=["model", 0], reuse_threshold=0.2, start_percent=0.1, end_percent=0.95,
                           verbose=True))
    assert "skip" in server.log()[before:].lower()
    assert video.shape == plain.shape and video.std() > 0.02

"""The host's MultiGPU CFG Split on each family and on what goes with it: the same result as on one device, half of it made
on the other one."""

import functools

import pytest
import torch

from . import test_step_cache as caching
from . import tiny
from .cogvideox import test_control as video_control, test_tora as trajectories, video_model
from .editing import test_edits as edits
from .sana import test_controlnet as picture_control
from .sana import sana_model
from .sana.sana_model import apart, host  # noqa: F401
from .sana_video import video_model as moving
from .sana_video.test_blockwise import draw
from .second_device import FIRST, SECOND, split

FAMILIES = ["Sana", "CogVideoX 2B", "CogVideoX 1.5 I2V", "SANA-Video", "SANA-Video 2.0"]


@pytest.fixture(scope="module")
def load(host, tmp_path_factory):  # noqa: F811
    """Family -> MODEL."""
    from sanacog.host.cogvideox.model import load_cogvideox
    from sanacog.host.sana_video.model import load_sana_video

    folder = tmp_path_factory.mktemp("devices")

    def loaded(name):
        file = folder / f"{name}.safetensors"
        if name == "Sana":
            return host.sana.load_sana(file if file.exists() else tiny.save_sana(file))
        if name.startswith("CogVideoX"):
            params = video_model.VARIANTS[name.removeprefix("CogVideoX ")]
            return load_cogvideox(file if file.exists() else video_model.tinycog.save_transformer(file, params))
        params = moving.SECOND if name.endswith("2.0") else moving.FIRST
        return load_sana_video(file if file.exists() else moving.save(file, params))
    return loaded


def start_of(name):
    if name == "Sana":
        return sana_model.noise(1)
    return moving.noise(moving.SECOND if name.endswith("2.0") else moving.FIRST) if "SANA" in name else video_model.noise()


def sample(host, name, model, steps=3, cfg=3.0, latent=None, positive=None, negative=None):  # noqa: F811
    start = start_of(name)
    plus, minus = (video_model.text(), video_model.text(1)) if "Cog" in name else (
        sana_model.conditioning(9), sana_model.conditioning(1, seed=1))
    return host.comfy.sample.sample(model, start, steps, cfg, "euler", "sgm_uniform", positive or plus, negative or minus,
                                    torch.zeros_like(start) if latent is None else latent, seed=0, disable_pbar=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_one_device(host, load, monkeypatch, name):  # noqa: F811
    model = load(name)
    plain = sample(host, name, model)
    several, conditions = split(host.comfy, monkeypatch, model)
    assert apart(sample(host, name, several), plain) < 1e-5
    assert conditions == {FIRST: 3, SECOND: 3}


def test_a_lora_and_another_shift(host, load, monkeypatch):  # noqa: F811
    import nodes  # noqa: F401
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = load("Sana").clone()
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    model.add_patches({key: (0.3 * torch.randn(model.model.state_dict()[key].shape),)})
    model = ModelSamplingSD3().patch(model, 5.0)[0]
    plain = sample(host, "Sana", model)
    several, conditions = split(host.comfy, monkeypatch, model)
    assert apart(sample(host, "Sana", several), plain) < 1e-5 < 1e-3 < apart(plain, sample(host, "Sana", load("Sana")))
    assert conditions[SECOND] == 3


@pytest.mark.parametrize("wiring", ["native", "diffusers"])
def test_sanas_controlnet(host, load, monkeypatch, tmp_path, wiring):  # noqa: F811
    from sanacog.host.sana.control import load_sana_controlnet

    model, vae = load("Sana"), host.vae.load_dcae(tiny.save_dcae(tmp_path / "dcae.safetensors"))
    net = load_sana_controlnet(tiny.save_controlnet(tmp_path / "net.safetensors", wiring))
    controlled = functools.partial(sample, host, "Sana")
    plain = controlled(model, **picture_control.apply(net, vae))
    conditionings = picture_control.apply(net, vae)
    used = conditionings["positive"][0][1]["control"]
    several, conditions = split(host.comfy, monkeypatch, model, [lambda: used.multigpu_clones[SECOND].control_model])
    assert apart(controlled(several, **conditionings), plain) < 1e-5 < 1e-3 < apart(controlled(model), plain)
    assert conditions[SECOND] == 3


def test_cogvideoxs_controlnet(host, load, monkeypatch, tmp_path):  # noqa: F811
    from sanacog.host.cogvideox.control import load_cogvideox_controlnet

    model = load("CogVideoX 5B")
    net = load_cogvideox_controlnet(video_model.tinycog.save_controlnet(tmp_path / "net.safetensors"))
    controlled = functools.partial(sample, host, "CogVideoX 5B")
    plain = controlled(model, **video_control.apply(net))
    conditionings = video_control.apply(net)
    used = conditionings["positive"][0][1]["control"]
    several, conditions = split(host.comfy, monkeypatch, model, [lambda: used.multigpu_clones[SECOND].control_model])
    assert apart(controlled(several, **conditionings), plain) < 1e-5 < 1e-3 < apart(controlled(model), plain)
    assert conditions[SECOND] == 3


def test_tora(host, load, monkeypatch, tmp_path):  # noqa: F811
    from sanacog.host.cogvideox import tora
    from sanacog.host.cogvideox.vae import load_cogvideox_vae

    model, vae = load("CogVideoX 5B"), load_cogvideox_vae(video_model.tinycog.save_autoencoder(tmp_path / "vae.safetensors"))
    files = video_model.tinycog.save_tora(tmp_path)
    patched, _ = tora.follow_trajectories(model, vae, *files, *trajectories.SIZE, trajectories.POINTS)
    start = trajectories.start()
    plain = video_model.sample(host, patched, start)
    several, conditions = split(host.comfy, monkeypatch, patched, [lambda: second_fusers(several)])
    assert apart(video_model.sample(host, several, start), plain) < 1e-5
    assert apart(video_model.sample(host, model, start), plain) > 1e-3
    assert conditions[SECOND] == 3


def second_fusers(model):
    from sanacog.host.cogvideox.tora import FUSERS

    [second] = model.get_additional_models_with_key("multigpu")
    return second.get_additional_models_with_key(FUSERS)[0].model


@pytest.mark.parametrize("name", ["Sana", "CogVideoX 5B"])
def test_keep_structure(host, load, monkeypatch, name):  # noqa: F811
    from sanacog.host.editing.structure import keep_structure

    kept = keep_structure(load(name), 0.0, 1.0)
    latent = 0.3 * start_of(name).flip(1)
    plain = sample(host, name, kept, latent=latent)
    several, conditions = split(host.comfy, monkeypatch, kept)
    assert apart(sample(host, name, several, latent=latent), plain) < 1e-5 and conditions[SECOND] == 3


@pytest.mark.parametrize("name", ["Sana", "CogVideoX 5B"])
def test_flow_edit(host, load, monkeypatch, name):  # noqa: F811
    from sanacog.host.editing import flow_edit

    host.flow_edit = flow_edit
    texts = (video_model.text(), video_model.text(1)) if "Cog" in name else (
        sana_model.conditioning(9), sana_model.conditioning(5, seed=3))
    several, conditions = split(host.comfy, monkeypatch, load(name))
    sigmas = torch.tensor([1.0, 0.8, 0.4, 0.0]) if name == "Sana" else host.samplers.cogvideox_sigmas(several, 3)
    plain, found = (edits.flow_edit(host, (model, 0.3 * start_of(name), *texts, sigmas), *texts, source_cfg=2.0,
                                    target_cfg=3.0) for model in (load(name), several))
    assert apart(found, plain) < 1e-4 and conditions == {FIRST: 6, SECOND: 6}


@pytest.mark.parametrize("name", ["sana", "5B"])
@pytest.mark.parametrize("method", caching.METHODS)
def test_step_cache_decides_on_each_device(host, monkeypatch, tmp_path, name, method):  # noqa: F811
    """Which of the two comes first at a level is chance, so neither may follow the other."""
    from sanacog.host import step_cache
    from sanacog.host.cogvideox.model import load_cogvideox

    params, core = caching.params_of(name), caching.core_of(name)
    file = tmp_path / "model.safetensors"
    if name == "sana":
        model = host.sana.load_sana(tiny.save_sana(file, params))
    else:
        model = load_cogvideox(caching.tinycog.save(core.state_dict(), file, caching.asdict(params)))
    threshold = caching.THRESHOLDS[name][caching.METHODS.index(method)]
    references = [caching.reference_of(name, method, threshold, core) for _ in range(2)]

    def predict(x, t, states, *mask):
        plus, minus = (core(x, t, text[0][0], *([text[0][1]["attention_mask"]] if mask else []), run_block=reference)
                       for text, reference in zip(caching.texts(name), references))
        return minus + 3.0 * (plus - minus)

    want = caching.expected(host, name, model, caching.start_of(name), predict)
    several, conditions = split(host.comfy, monkeypatch, step_cache.step_cache(model, method, threshold, most=99))
    assert apart(caching.sample(host, name, several), want) < 1e-5
    assert all(0 < sum(reference.log) < caching.STEPS - 2 for reference in references)
    assert conditions == {FIRST: caching.STEPS, SECOND: caching.STEPS}


def test_a_clip_drawn_block_by_block(host, load, monkeypatch):  # noqa: F811
    from sanacog.host.sana_video import blockwise

    host.blockwise = blockwise
    start = moving.noise(frames=8)
    plain = draw(host, load("SANA-Video"), start, cfg=3.0)
    several, conditions = split(host.comfy, monkeypatch, load("SANA-Video"))
    assert apart(draw(host, several, start, cfg=3.0), plain) < 1e-5 and conditions[FIRST] == conditions[SECOND] > 0

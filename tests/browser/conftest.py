"""Fixtures for the browser tests: one page on the running ComfyUI."""

import pytest

from sanacog.headless.canvas import Canvas
from sanacog.headless.launcher import give_inputs

from ..host import tiny_smoother, tiny_video_vaes
from ..host.tiny import import_host
from ..host.tiny_cogvideox import save_controlnet_of_the_embedded, save_fun_models, save_tora_of_the_embedded
from ..host.tiny_sana_video import save_second_generation
from .shipped import EMBEDDED, TO_OPEN


@pytest.fixture(scope="session")
def files(server, comfyui_path):
    """What workflows load: the pictures and videos, and random models of the kinds that the pack does not carry."""
    give_inputs(server.base)
    models = server.base / "models"
    save_fun_models(models / "diffusion_models")
    save_controlnet_of_the_embedded(models / "controlnet" / EMBEDDED["SanaCogLoadCogVideoXControlNet"])
    save_tora_of_the_embedded(models / "controlnet")
    save_second_generation(models / "diffusion_models" / "random_sana_video_2.safetensors")
    (models / "vae").mkdir(exist_ok=True)
    import_host(comfyui_path)
    (models / "vae").mkdir(exist_ok=True)
    tiny_video_vaes.save_wan_vae(models / "vae" / "random_wan_vae.safetensors")
    tiny_video_vaes.save_ltx2_vae(models / "vae" / "random_ltx2_vae.safetensors")
    tiny_smoother.save_upscaler(models / "upscale_models")
    if TO_OPEN["cogvideox_interpolate"] in server.object_info:
        tiny_smoother.save_rife(models / "frame_interpolation")


@pytest.fixture(scope="session")
def canvas(browser, server, files):
    """The frontend of the running ComfyUI, open in the browser: it asks what files there are when it starts."""
    return Canvas(browser, server.url)

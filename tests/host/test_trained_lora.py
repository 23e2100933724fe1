"""A LoRA from our own trainer acts as it was trained, in Load LoRA and in the stock loader, whatever its alpha."""

import pytest
import torch

from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.sana_core import video_checkpoint
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.training import adapter_files, adapters

from . import tiny_sana_video
from .lora_files import changed, folder, host, sana, video  # noqa: F401


@pytest.fixture(scope="module")
def sana_video(host, folder):  # noqa: F811
    return loaded_sana_video(folder, "480p")


@pytest.fixture(scope="module")
def sana_video_2(host, folder):  # noqa: F811
    return loaded_sana_video(folder, "2.0")


def loaded_sana_video(folder, kind):  # noqa: F811
    from sanacog.host.sana_video.model import load_sana_video

    return load_sana_video(tiny_sana_video.save(folder / f"{kind}.safetensors", tiny_sana_video.KINDS[kind]))


@pytest.mark.parametrize("family, network", [("sana", SanaTransformer), ("video", CogVideoTransformer),
                                             ("sana_video", video_checkpoint.network),
                                             ("sana_video_2", video_checkpoint.network)])
@pytest.mark.parametrize("stock", [False, True])
def test_trained(host, request, tmp_path, family, network, stock):
    import comfy.sd
    import comfy.utils

    model = request.getfixturevalue(family)
    ours = network(model.model.model_config.params)
    added = adapters.add(ours, 4, 6.0, ["all-linear"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for low in added.layers:
            low.B.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    path = adapter_files.write(tmp_path / "lora.safetensors", added, {"title": "a test"})
    if stock:
        got, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path), safe_load=True), 1.0, 0.0)
    else:
        got, _ = host.lora.apply_lora(path, model)
    assert len(got.patches) == len(added.names) > 8
    for name, low in zip(added.names, added.layers):
        after, before = changed(host, got, f"diffusion_model.{name}.weight")
        want = 1.5 * low.B.detach() @ low.A.detach()
        assert ((after - before - want).norm() / want.norm()).item() < 1e-4

"""What CogVideoX's MODEL refuses, and how: a clear error, before anything is allocated."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from sanacog.cogvideo_core.checkpoint import from_canonical

from .. import tiny
from .. import tiny_cogvideox as tinycog
from ..tiny_cogvideox import PARAMS, params_of
from .video_model import VARIANTS, host, model, noise, sample, text, weights  # noqa: F401


def test_text_of_another_model_is_refused(host, model):
    for width, name in ((4096, "T5-XXL"), (768, "CLIP-L"), (2304, "Gemma"), (123, "123")):
        with pytest.raises(ValueError, match=f"{name}.*Load CogVideoX Text Encoder"):
            sample(host, model, positive=text(width=width))


@pytest.mark.parametrize("start, latent, message", [
    (torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8, 8), "1 x 4 x 8 x 8.*Empty CogVideoX Latent"),
    (torch.ones(1, 32, 8, 8), torch.ones(1, 32, 8, 8), "1 x 32 x 8 x 8"),
    (torch.ones(1, 16, 8, 8), torch.ones(1, 16, 8, 8), "1 x 16 x 8 x 8"),
    (torch.ones(1, 4, 3, 8, 8), torch.ones(1, 4, 3, 8, 8), "another model"),
    (noise(0), torch.zeros_like(noise(0)), "at least 1"),
    (noise(batch=0), torch.zeros_like(noise(batch=0)), "at least 1"),
    (noise(), torch.full_like(noise(), float("nan")), "NaN"),
])
def test_wrong_latents_are_refused(host, model, start, latent, message):
    with pytest.raises(ValueError, match=message):
        sample(host, model, start, latent)


def test_a_request_that_cannot_fit_is_refused(host, model, monkeypatch):
    # 10 D numbers of 4 bytes a token, 4 latent pixels a token.
    there = 10 * 64 * 4 * (3 * 4 * 6) // 4
    monkeypatch.setattr(host.memory.mm, "get_total_memory", lambda device: there)
    sample(host, model)
    with pytest.raises(ValueError, match="2 x 9 frames of 48 x 32 px needs at least.*shorter or smaller"):
        sample(host, model, noise(batch=2))
    windows = model.clone()
    windows.model_options["context_handler"] = SimpleNamespace(dim=2, context_length=2)
    with pytest.raises(ValueError, match="17 frames"):
        sample(host, model, noise(5))
    host.sampling.check_size((1, 16, 5, 4, 6), windows.model_options["context_handler"], model.model, model.load_device)


def test_memory_estimate(host, model, weights):
    # 0.15 / 0.01 is the host's own margin without flash attention.
    for params, pixels in ((PARAMS, 4), (VARIANTS["1.5"], 8)):
        loaded = host.cogvideox.load_cogvideox(weights(params)).model
        assert loaded.memory_required([2, 16, 4, 8, 8]) / (2 * 256 / pixels * 8 * 64) == pytest.approx(15, rel=1e-3)


def test_empty_latent_sizes(host):
    latent = host.cogvideox.empty_latent(96, 64, 9, 2)
    assert latent["samples"].shape == (2, 16, 3, 8, 12)
    assert host.cogvideox.empty_latent(96, 64, 1)["samples"].shape == (1, 16, 1, 8, 12)
    for arguments, message in (((100, 64, 9, 1), "width"), ((96, 0, 9, 1), "height"), ((96, -32, 9, 1), "height"),
                               ((96, 64, 9, 0), "batch_size"), ((96, 64, 48, 1), "4 n \\+ 1, such as 45 or 49"),
                               ((96, 64, 0, 1), "length"), ((96, 64, -3, 1), "such as 1 or 5")):
        with pytest.raises(ValueError, match=message):
            host.cogvideox.empty_latent(*arguments)


def test_wrong_files(host, tmp_path):
    for path, name in ((tiny.save_sana(tmp_path / "sana.safetensors"), "a Sana transformer"),
                       (tinycog.save_autoencoder(tmp_path / "vae.safetensors"), "Load CogVideoX VAE"),
                       (tinycog.save_t5(tmp_path / "t5.safetensors"), "Load CogVideoX Text Encoder")):
        with pytest.raises(ValueError, match=f"{path.name}.*{name}"):
            host.cogvideox.load_cogvideox(path)


@pytest.mark.parametrize("layout", ["diffusers", "sat", "comfy"])
def test_damaged_files(host, tmp_path, layout):
    whole = from_canonical(tinycog.transformer().state_dict(), layout)
    key = {"diffusers": "transformer_blocks.1.norm2.linear.weight", "comfy": "blocks.1.norm2.linear.weight",
           "sat": "mixins.adaln_layer.adaLN_modulations.1.1.weight"}[layout]
    canonical = "transformer_blocks.1.norm2.linear.weight"
    for changes, message in (({key: None}, f"not a whole .*missing.*{canonical}"),
                             ({"surprise.weight": torch.zeros(3)}, "surprise"),
                             ({key: torch.zeros(8, 5)}, f"shape.*{canonical}")):
        path = tinycog.save({k: t for k, t in (whole | changes).items() if t is not None}, tmp_path / "bad.safetensors",
                            asdict(PARAMS))
        with pytest.raises(ValueError, match=f"bad.safetensors.*{message}"):
            host.cogvideox.load_cogvideox(path)
    with pytest.raises(ValueError, match="weight_dtype"):
        host.cogvideox.load_cogvideox(path, "int3")


GIVEN = {"image": "image_to_video", "images": "image_to_video", "control": "fun_control", "inpaint": "fun_inpaint"}


def given_by_nodes(what):
    """What our nodes put into a conditioning, for 9 frames of 48 x 32 px."""
    from sanacog.host.cogvideox import conditioning

    from .test_conditioning import SeenVAE, picture

    pictures = {"image": dict(start_image=picture(0.5)), "images": dict(start_image=picture(0.5), end_image=picture(0.2)),
                "control": dict(control_video=picture(0.5, 9)), "inpaint": dict(start_image=picture(0.5))}[what]
    positive, _, _ = getattr(conditioning, GIVEN[what])(text(), text(1), SeenVAE(), 48, 32, 9, 1, **pictures)
    return {key: value for key, value in positive[0][1].items()}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind, version, reads, node", [
    ("image", "1.0", ("image", "images"), "Use CogVideoX Image to Video, .*set conditioning of Load CogVideoX Model"),
    ("image", "1.5", ("image", "images"), "Use CogVideoX Image to Video, or load another model.$"),
    ("repeated_image", "1.0", ("image",), "one start picture.*CogVideoX Image to Video without an end_image"),
    ("control", "1.0", ("control",), "Use CogVideoX Fun Control, .*set conditioning of Load CogVideoX Model"),
    ("inpaint", "1.0", ("inpaint",), "Use CogVideoX Fun Inpaint, or load another model.$"),
    ("none", "1.0", (), "goes by the text alone.*image-to-video"),
    ("void", "1.5", (), "a quadmask and a video.*VOIDInpaintConditioning")])
def test_every_kind_of_picture_goes_into_its_own_models(host, weights, kind, version, given, reads, node):
    model, values = host.cogvideox.load_cogvideox(weights(params_of(kind, version))), given_by_nodes(given)
    if given in reads:
        assert sample(host, model, values=values, steps=1).isfinite().all()
    else:
        with pytest.raises(ValueError, match=node):
            sample(host, model, values=values, steps=1)


def test_a_picture_of_a_node_that_does_not_say_its_kind_passes(host, weights):
    for kind in ("image", "repeated_image", "control"):
        model = host.cogvideox.load_cogvideox(weights(params_of(kind)))
        assert sample(host, model, values=dict(concat_latent_image=torch.ones(1, 16, 3, 4, 6)), steps=1).isfinite().all()


def test_a_size_that_the_position_table_was_not_trained_for_is_said(host, weights, caplog):
    model = host.cogvideox.load_cogvideox(weights(VARIANTS["5B I2V"]))
    params = model.model.model_config.params
    sample(host, model, noise(height=params.sample_height, width=params.sample_width), steps=1)
    assert "stretched" not in caplog.text
    sample(host, model, noise(height=6, width=4), steps=1)
    trained = f"{8 * params.sample_width} x {8 * params.sample_height} px"
    assert trained in caplog.text and "stretched to 32 x 48" in caplog.text
    caplog.clear()
    sample(host, host.cogvideox.load_cogvideox(weights(VARIANTS["1.5 I2V"])), noise(height=6, width=4), steps=1)
    assert "stretched" not in caplog.text


def test_more_text_or_frames_than_the_position_table_holds(host, weights):
    model = host.cogvideox.load_cogvideox(weights(VARIANTS["5B I2V"]))
    longer = [[torch.cat([text()[0][0]] * 2, dim=1), {}]]
    held = model.model.model_config.params.max_text_seq_length
    said = f"{longer[0][0].shape[1]} tokens, this model's position table {held}.*Conditioning"
    with pytest.raises(ValueError, match=said) as error:
        sample(host, model, positive=longer)
    assert "shorter" not in str(error.value)
    with pytest.raises(ValueError, match="13 latent frames, and 14 were given. Make the video shorter"):
        sample(host, model, noise(14))
    dit = model.model.diffusion_model
    with pytest.raises(ValueError, match=f"{held} text tokens.*Encode the text for so many"):
        dit(torch.cat([noise(), noise()], 1), torch.tensor([500.0]), longer[0][0])


@pytest.mark.parametrize("kind, values, message", [
    ("none", dict(concat_latent_image=torch.ones(1, 16, 3, 4, 6)), "text alone.*image-to-video"),
    ("image", dict(concat_latent_image=torch.ones(1, 16, 3, 4, 6), concat_mask=torch.ones(1, 1, 3, 4, 6)),
     "takes a start picture.*with a mask.*CogVideoX Image to Video"),
    ("inpaint", dict(concat_latent_image=torch.ones(1, 16, 3, 4, 6)), "without a mask.*CogVideoX Fun Inpaint"),
    ("inpaint", dict(concat_mask=torch.ones(1, 1, 3, 4, 6)), "mask alone"),
    ("image", dict(concat_latent_image=torch.ones(1, 16, 3, 8, 6)), "1 x 16 x 3 x 8 x 6.*16 x 3 x 4 x 6"),
    ("image", dict(concat_latent_image=torch.ones(1, 16, 4, 6)), "1 x 16 x 4 x 6.*another model's VAE"),
    ("control", dict(concat_latent_image=torch.ones(1, 16, 13, 4, 6)), "another size or length"),
    ("inpaint", dict(concat_latent_image=torch.ones(1, 16, 3, 4, 6), concat_mask=torch.ones(1, 1, 3, 32, 48)), "given mask"),
])
def test_wrong_conditioning_is_refused(host, weights, kind, values, message):
    with pytest.raises(ValueError, match=message):
        sample(host, host.cogvideox.load_cogvideox(weights(params_of(kind))), values=values)

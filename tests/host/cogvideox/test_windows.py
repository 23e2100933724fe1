"""Image to video in the host's context windows, on the embedded model: the picture stays in all windows, and none begins
with a cut."""

import inspect

import numpy as np
import torch

from sanacog.headless.installation import ROOT
from sanacog.evaluation.drawn import clips
from sanacog.evaluation.drawn.judge import judge

from .video_model import host, random, sample  # noqa: F401

LATENTS, WINDOW = 7, 3


def test_windows_go_on_from_each_other(host, monkeypatch):  # noqa: F811
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as Windows

    from sanacog.host.cogvideox import conditioning, text, vae

    models = ROOT / "models"
    clip = text.load_t5(models / "text_encoders/sanacog_tiny_t5.safetensors")
    vae = vae.load_cogvideox_vae(models / "vae/sanacog_tiny_cogvideox_vae.safetensors")
    model = host.cogvideox.load_cogvideox(models / "diffusion_models/sanacog_tiny_cogvideox_i2v.safetensors")
    causal = {"causal_window_fix": False} if "causal_window_fix" in inspect.signature(Windows.execute).parameters else {}
    given = {"context_length": WINDOW, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
             "dim": 2, "closed_loop": False, "fuse_method": "pyramid", **causal}
    if "freenoise" in inspect.signature(Windows.execute).parameters:
        given["freenoise"] = False
    model = Windows.execute(model, **given).result[0]

    def encode(prompt):
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def found():
        """(share of the frames after the first window in the start picture's colours, which the empty prompt does not tell;
        largest change as a share of the median one)"""
        shown, jumps = [], []
        for i, scene in enumerate(clips.evaluation_scenes()[0][:32:8]):
            start = torch.from_numpy(clips.to_frames(clips.draw(scene[None], torch.Generator().manual_seed(i)))[0][:1])
            positive, negative, _ = conditioning.image_to_video(encode(""), encode(""), vae, 96, 96,
                                                                4 * LATENTS - 3, 1, start)
            out = sample(host, model, random(1, 16, LATENTS, 12, 12, seed=i), steps=20, cfg=1.0,
                         positive=positive, negative=negative)
            frames = vae.decode(out)[0].numpy()
            wanted = clips.COLOURS[int(scene[0])], clips.COLOURS[int(scene[2])]
            shown += [(verdict.colour, verdict.background) == wanted for verdict in map(judge, frames[4 * WINDOW - 3:])]
            change = np.abs(frames[1:] - frames[:-1]).mean((1, 2, 3))
            jumps.append(change.max() / np.median(change))
        return np.mean(shown), np.mean(jumps)

    with_picture = found()
    monkeypatch.setattr(host.cogvideox, "with_start_picture", lambda channels, picture, window: channels)
    without = found()
    assert with_picture[0] >= 0.9 and with_picture[0] > without[0]
    assert with_picture[1] < 4.0, "a window begins with a cut"

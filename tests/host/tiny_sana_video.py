"""Random tiny SANA-Video transformers, saved as released files are."""

import json
from dataclasses import asdict, replace

from safetensors.torch import save_file

from sanacog.sana_core.video_checkpoint import from_canonical, network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams

from . import tiny

FIRST = SanaVideoParams(3, 2, 2, 32, attention_head_dim=32, caption_channels=tiny.CAPTION)
WIDE = SanaVideoParams(2, 2, 2, 32, attention_head_dim=32, in_channels=128, out_channels=128, patch_size=1,
                       caption_channels=tiny.CAPTION, latents="ltx2")
SECOND = SanaVideo2Params(4, 96, 3, (1, 3), linear_head_dim=24, softmax_head_dim=48, caption_channels=tiny.CAPTION,
                          mlp_ratio=2.0, depth_group=2)
EMBEDDED = SanaVideoParams(2, 2, 2, 32, attention_head_dim=32, patch_size=1, caption_channels=tiny.CAPTION, latents="cogvideox")
KINDS = {"480p": FIRST, "720p": WIDE, "2.0": SECOND, "embedded": EMBEDDED}


def core(params=FIRST):
    return tiny.randomise(network(params)).eval()


def save(path, params=FIRST, layout="diffusers", **changes):
    """A file of such a model. changes: key -> tensor, or None to leave it out."""
    state_dict = from_canonical(core(params).state_dict(), layout) | changes
    save_file({key: t.contiguous() for key, t in state_dict.items() if t is not None}, path,
              metadata={"config": json.dumps(asdict(params))})
    return path


def save_second_generation(path):
    """SANA-Video 2.0 that goes with the embedded text encoder."""
    return save(path, replace(SECOND, caption_channels=96))

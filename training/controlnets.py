"""The ControlNet that a run trains: a new one, from its base, or one to go on from."""

from __future__ import annotations

from pathlib import Path

import torch

from ..kernels.quant_layers import from_metadata
from ..sana_core import controlnet_checkpoint
from ..sana_core.config import SanaParams
from ..sana_core.controlnet import SanaControlNet
from ..storage.checkpoints import check_finite, open_checkpoint

WIRING = "diffusers"  # of a new one: what its file, which has diffusers' layout, is taken for everywhere


def new(params: SanaParams, blocks: int, meta: bool = False) -> SanaControlNet:
    """In fp32, without weights; they are to be its base's (SanaControlNet.start_from)."""
    return SanaControlNet(params, blocks, WIRING, device="meta" if meta else None)


def load(path: Path, params: SanaParams, blocks: int, meta: bool = False) -> SanaControlNet:
    """A file or folder of any layout, in fp32. params: of the base; blocks: objective.control_layers. Raises ValueError for a
    ControlNet of another base or number of blocks, and for a quantised one."""
    checkpoint = open_checkpoint(path)
    found = controlnet_checkpoint.identify_controlnet(checkpoint.shapes, checkpoint.config, str(path),
                                                      config_place=checkpoint.config_place)
    controlnet_checkpoint.check_shapes(checkpoint.shapes, found, Path(path).name)
    if from_metadata(checkpoint.metadata):
        raise ValueError(f"{path}: quantised, and what is trained has to be whole. Take the file that it was made from.")
    sizes = [(p.width, p.num_attention_heads, p.num_cross_attention_heads, p.caption_channels, p.qk_norm) for p in (found.params, params)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{path}: a {found.variant}, and model.transformer is another base. Take its own.")
    if found.params.num_layers != blocks:
        raise ValueError(f"{path}: it has {found.params.num_layers} copied blocks, and objective.control_layers is {blocks}. Set "
                         f"objective.control_layers={found.params.num_layers}.")
    control = SanaControlNet(params, blocks, found.wiring, device="meta" if meta else None)
    if not meta:
        tensors = controlnet_checkpoint.to_canonical(checkpoint.load(), found.layout)
        check_finite(tensors, Path(path).name)
        control.load_state_dict({name: t.to(torch.float32) for name, t in tensors.items()})
    return control

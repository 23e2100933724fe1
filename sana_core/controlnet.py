"""ControlNet for Sana: a trained copy of the base's first blocks that reads a control picture beside the noisy latent.

There are two wirings of the same parameters, which do not give the same picture:

    native     NVlabs/Sana, which trained the released files. The copies start from x after the base's block 0; what copy i
               gives goes in before the base's block i + 1.
    diffusers  SanaControlNetModel. The copies start from the embedded latent, and what copy i gives goes in after the
               base's block i + 1.

How to use it, with `base` a SanaTransformer and `control` the control picture's DC-AE latent times 0.41407:

    network = SanaControlNet(base.params, num_layers=7, wiring="native")
    network.start_from(base)               # before training; a file's weights come by load_state_dict
    residuals = network(x, timestep, context, mask, control=control, base_block=base.transformer_blocks[0])

    def run_block(i, call, x, context, modulation):
        x, context = call(x, context, modulation)
        return (x + residuals[i] if i < len(residuals) and residuals[i] is not None else x), context
    velocity = base(x, timestep, context, mask, run_block=run_block)

The native wiring takes the base's block 0 from the base that runs, because there the base's own x goes on into the copies:
so a LoRA on that block counts, a quantised or offloaded base is used as it is, and a second copy takes no memory. The
embedders are the ControlNet's own in both, as in diffusers' files.
Source: NVlabs/Sana, sana_multi_scale_controlnet.py, and diffusers, controlnet_sana.py. Unlike NVlabs' code the whole timestep is
not rounded to the weights' type (999 would be 1000 in bf16), as it is not for the base.
"""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.products import fastest
from .config import SanaParams
from .transformer import SanaBlock, SanaInputs, SanaTransformer, sdpa

WIRINGS = ("native", "diffusers")


class SanaControlNet(SanaInputs):
    """Residuals for a SanaTransformer's tokens.

    params: the base's; its num_layers is not used. num_layers: copied blocks, fewer than the base has. wiring: one of
    WIRINGS, else ValueError. device, dtype, operations: as for SanaTransformer. Parameter names are those of diffusers'
    SanaControlNetModel in both wirings.
    """

    def __init__(self, params: SanaParams, num_layers: int = 7, wiring: str = "native", *, device=None, dtype=None,
                 operations=torch.nn):
        if wiring not in WIRINGS:
            raise ValueError(f"wiring is {wiring!r}: choose one of {', '.join(WIRINGS)}.")
        kw = dict(device=device, dtype=dtype)
        super().__init__(params, operations=operations, **kw)
        D, self.wiring = params.width, wiring
        self.input_block = operations.Linear(D, D, **kw)
        self.transformer_blocks = nn.ModuleList(
            [SanaBlock(params, operations=fastest(operations), **kw) for _ in range(num_layers)])
        self.controlnet_blocks = nn.ModuleList([operations.Linear(D, D, **kw) for _ in range(num_layers)])

    @torch.no_grad()
    def start_from(self, base: SanaTransformer) -> None:
        """Weights to train from: the base's, and zeros where the control comes in and the residuals go out."""
        ours, theirs = self.state_dict(), base.state_dict()
        self.load_state_dict({key: theirs.get(key, torch.zeros_like(t)) for key, t in ours.items()})

    def forward(self, x, timestep, context, attention_mask=None, guidance=None, *, control, base_block=None, text=None,
                attention=sdpa) -> list:
        """What to add to the base's tokens: entry i, (B, N, D) or None, after its block i.

        x, timestep, context, attention_mask, guidance, attention: as in SanaTransformer.forward, and text too, but of this
        network. control (B or 1, in_channels, H, W): latent of the control picture times 0.41407, of x's size.
        base_block(x, context, modulation, mask, height, width, attention) -> x: the base's block 0; the native wiring needs
        it, else ValueError.
        """
        native = self.wiring == "native"
        if native and base_block is None:
            raise ValueError("The native wiring of a Sana ControlNet needs `base_block`, the base's transformer_blocks[0].")
        height, width = (side // self.params.patch_size for side in x.shape[-2:])

        x, modulation, _ = self.embed(x, timestep, guidance)
        context, mask, pairs = self.embed_text(context.to(x.dtype), attention_mask) if text is None else text
        if native:
            x = base_block(x, context, modulation, mask, height, width, attention)
        # Only diffusers gives the control picture the position code of the 2K and 4K models.
        x = x + self.input_block(self.patch_embed(control.to(x.dtype), positions=not native))

        residuals = [] if native else [None]
        for i, (block, out) in enumerate(zip(self.transformer_blocks, self.controlnet_blocks)):
            x = block(x, context, modulation, mask, height, width, attention, pair=pairs[i] if pairs else None)
            residuals.append(out(x))
        return residuals

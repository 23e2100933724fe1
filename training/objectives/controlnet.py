"""A ControlNet is trained by Sana's own objective, through its base: this is the network that SanaFlow then sees."""

from __future__ import annotations

from torch import nn

from ...sana_core.controlnet import SanaControlNet
from ...sana_core.transformer import SanaTransformer


class Controlled(nn.Module):
    """The frozen base with a ControlNet's residuals in it; gradients reach the ControlNet alone."""

    def __init__(self, base: SanaTransformer, control: SanaControlNet):
        super().__init__()
        self.base, self.control = base.requires_grad_(False), control

    def forward(self, x, timestep, context, mask=None, *, control):
        """As SanaTransformer.forward; control (B, C, h, w): latent of the control picture, scaled."""
        first = self.base.transformer_blocks[0] if self.control.wiring == "native" else None
        residuals = self.control(x, timestep, context, mask, control=control, base_block=first)

        def run_block(i, call, x, context, modulation):
            x, context = call(x, context, modulation)
            return (x + residuals[i] if i < len(residuals) and residuals[i] is not None else x), context
        return self.base(x, timestep, context, mask, run_block=run_block)

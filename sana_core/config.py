"""What a Sana transformer is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SanaParams:
    """Everything that tells one Sana transformer from another. Fields have diffusers' names where it has one.

    The first four have no common value; the rest default to what all released text-to-image models share.
    """

    num_layers: int
    num_attention_heads: int           # self-attention; width = num_attention_heads * attention_head_dim
    num_cross_attention_heads: int
    cross_attention_head_dim: int
    attention_head_dim: int = 32
    in_channels: int = 32
    out_channels: int = 32
    patch_size: int = 1
    caption_channels: int = 2304       # width of the text encoder's states (Gemma-2-2B)
    mlp_ratio: float = 2.5
    qk_norm: bool = False              # RMSNorm over the whole width of q and k, in both attentions
    guidance_embeds: bool = False      # Sprint: the guidance scale is an input
    guidance_embeds_scale: float = 0.1
    sample_size: int = 32              # latent side the position code is laid out for
    interpolation_scale: float | None = None  # None: no position code; 2K 1.0, 4K 2.0
    timestep_scale: float = 1.0        # timestep the network sees = 1000 * sigma * timestep_scale
    clamp_fp16: bool = False           # trained in fp16 with +-65504 clipped after self-attention: part of the model
    flow_shift: float = 3.0            # timestep shift of the sampling schedule

    @property
    def width(self) -> int:
        """D, channels of a token inside the network."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels behind the gate of the feed-forward network."""
        return int(self.width * self.mlp_ratio)

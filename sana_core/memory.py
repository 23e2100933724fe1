"""What memory Sana's networks take beside their weights: the tensors that are alive at once, at the widest place.

Counted from the code and held against the resident set of a CPU (bench/memory.py). What is said of a GPU is counted
only: there the kernels leave out tensors that the eager forms make, and the libraries' workspaces come on top.
"""

from __future__ import annotations

from .autoencoder import DCAEParams
from .config import SanaParams
from .exact_tiles import MARGIN, ROWS_BYTES, TILE


def numbers_a_token(params: SanaParams, itemsize: int, fused: bool) -> int:
    """Numbers of `itemsize` bytes that a step has alive for each token of the latent; D width, h the inner width.

    Feed-forward: the input of the block, the residual behind its attention and the normalised copy of that, 3 D; before
    and after the depthwise convolution 2 h each; the fused kernel writes h at once.
    Self-attention: the input and its normalised copy, q, k and v, 5 D. Fused, only the result is added. Eager in 16 bits,
    q, k and v in fp32 (2 D each), the product and the quotient in fp32 (2 D each) and the result: 16 D; in fp32 q and k
    after ReLU, a copy of q for the product, the product and the quotient: 10 D.
    The text, and what the libraries keep, does not grow with the picture and is left out: 2 to 22 MiB were measured. What a
    run keeps of the text (host/text_cache.py, which limits it) is left to the reserve that hosts add.
    """
    D, h = params.width, params.hidden
    if fused:
        return max(3 * D + 3 * h, 6 * D)
    return max(3 * D + 4 * h, 16 * D if itemsize < 4 else 10 * D)


def picture_bytes(channels: int, pixels: int, itemsize: int, on_cpu: bool) -> int:
    """Peak on the device while DC-AE encodes or decodes one picture; channels: of the stage of full size, itemsize: bytes
    of a number.

    That stage is the widest place: 3 tensors of `channels` numbers a pixel are alive in its residual blocks. The half
    is for the upsampling's folded weights and for what the convolutions' library takes for itself. In 16 bits a CPU
    multiplies by the norm's fp32 scale in fp32 copies, of which two stand beside two tensors: twice as much in all.
    """
    copies = 2 if on_cpu and itemsize < 4 else 1
    return max(1, 7 * copies * channels * pixels * itemsize // 2)  # hosts divide by it


def exact_bytes(params: DCAEParams, side: str, height: int, width: int, itemsize: int, on_cpu: bool, tile: int = TILE) -> int:
    """Peak on the device while DC-AE encodes or decodes one picture in pieces that equal the whole (exact_tiles). side:
    "encoder" or "decoder"; height, width: of the picture in pixels.

    Either a stage with attention: its input, and what its two halves make of it, whole, beside the strip that is under way, of
    whose widest tensor four are alive. Or a tile, with its margin, beside the largest of those stages.
    """
    channels, kinds = getattr(params, f"{side}_block_out_channels"), getattr(params, f"{side}_block_types")
    stage = max((width_ * height * width // 4**i for i, (width_, kind) in enumerate(zip(channels, kinds))
                 if kind == "EfficientViTBlock"), default=0) * itemsize
    piece = min(height, tile + 2 * MARGIN) * min(width, tile + 2 * MARGIN)
    return max(3 * stage + 4 * min(ROWS_BYTES, 8 * stage), stage + picture_bytes(channels[0], piece, itemsize, on_cpu))

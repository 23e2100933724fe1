"""How far CogVideoX's result changes with its time embedding, for TeaCache: the figures that TeaCache's authors fitted."""

from __future__ import annotations

from .config import CogVideoParams

_2B = (-3.10658903e+01, 2.54732368e+01, -5.92380459e+00, 1.75769064e+00, -3.61568434e-03)
_5B = (-1.53880483e+03, 8.43202495e+02, -1.34363087e+02, 7.97131516e+00, -5.23162339e-02)  # text and image to video
_1_5 = (2.50210439e+02, -1.65061612e+02, 3.57804877e+01, -7.81551492e-01, 3.58559703e-02)
_1_5_IMAGE = (1.22842302e+02, -1.04088754e+02, 2.62981677e+01, -3.06009921e-01, 3.71213220e-02)


def polynomial(params: CogVideoParams) -> tuple[float, ...]:
    """Coefficients, the highest power first: of the relative L1 change of the time embedding between two steps, for the
    relative L1 change of the result. The Fun models, VOID and others take those of what they were made from.

    Source: TeaCache's repository (ali-vilab/TeaCache), the sample script in TeaCache4CogVideoX1.5.
    """
    if not params.use_rotary_positional_embeddings:
        return _2B
    if params.patch_size_t is None:
        return _5B
    return _1_5_IMAGE if params.ofs_embed_dim else _1_5

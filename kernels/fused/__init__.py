"""The Triton kernels, one file an operation. Importing this needs Triton; kernels/dispatch.py alone does it."""

from . import glumbconv, linear_attention, rms_norm, rope, rotary_attention, spatial_norm  # noqa: F401  each registers its kernels

"""What this machine's processor does fast: where the CPU computes, number types and libraries are chosen by it."""

import functools
import os
import platform

import torch


@functools.cache
def multiplies_bf16():
    """Whether the CPU has instructions for products of bf16 (AVX512-BF16 or AMX on x86, BF16 on Arm), and PyTorch uses them.
    Without them products in bf16 are several times slower than in fp32, with them several times faster."""
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    cpu = torch.cpu
    return any(getattr(cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


@functools.cache
def is_amd():
    """Whether an AMD made the CPU, where Intel's MKL, which PyTorch multiplies fp32 matrices with, takes slower ways."""
    try:
        with open("/proc/cpuinfo") as file:
            return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in file)
    except OSError:  # not Linux
        return "AuthenticAMD" in os.environ.get("PROCESSOR_IDENTIFIER", "")

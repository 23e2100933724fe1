"""The Triton kernels compiled for every generation of GPU from Ampere on, with none at hand: registers without spills,
and no more shared memory than that GPU has."""

import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton")
if not triton.backends.backends.get("nvidia"):
    pytest.skip("this Triton compiles for no NVIDIA GPU", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sanacog.kernels.fused import glumbconv, linear_attention, rms_norm, rope, rotary_attention, spatial_norm  # noqa: E402

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a program may have (CUDA programming guide)
STATE, APPLY = linear_attention.STATE_BLOCK, linear_attention.APPLY_BLOCK

ROTARY = dict(DIM=112, HALF=64, WIDTH=rotary_attention.COLUMNS, OUT=112, RELU=True, BLOCK=rotary_attention.BLOCK)  # SANA-Video 2B's heads
OPTIONS = dict.fromkeys((rotary_attention.state_kernel, rotary_attention.read_kernel), rotary_attention.OPTIONS)

# kernel, its pointers that are fp32, arguments known when it is compiled: 1 where the stride is 1
KERNELS = {
    "state": (linear_attention.state_kernel, ["partial"], dict(DIM=32, BLOCKS=4, k_d=1, v_d=1)),
    "apply": (linear_attention.apply_kernel, ["partial"], dict(DIM=32, BLOCK=APPLY, BLOCKS=2, SPLITS=16, q_d=1)),
    "gated": (glumbconv.gated_kernel, [], dict(CHANNELS=glumbconv.CHANNELS, COLUMNS=glumbconv.COLUMNS, ROWS=glumbconv.ROWS,
                                               x_c=1)),
    "rms norm": (rms_norm.rms_norm_kernel, [], dict(RESIDUAL=True, ACTIVATION="silu", ROWS=4, CHANNELS=1024)),
    "rope": (rope.rope_kernel, ["cos", "sin"], dict(DIM=64, HEADS=rope.HEADS)),
    "rotary state": (rotary_attention.state_kernel, ["values", "keys", "cos", "sin"], dict(ROTARY, BLOCKS=4)),
    "rotary read": (rotary_attention.read_kernel, ["values", "keys", "cos", "sin"], dict(ROTARY, BLOCKS=2)),
    "scale, shift, SiLU": (spatial_norm.scale_shift_silu_kernel, [], dict(ROWS=spatial_norm.ROWS, COLUMNS=spatial_norm.COLUMNS)),
}
POINTERS = {"q", "k", "v", "values", "keys", "x", "out", "partial", "weight", "bias", "residual", "cos", "sin", "scale", "shift"}


def built(kernel, arch, dtype, fp32, constants):
    """Compiled as for a launch: pointers, and numbers but for a few, are multiples of 16, as they are in the models."""
    signature, attributes = {}, {}
    if kernel is linear_attention.state_kernel:
        constants = dict(constants, BLOCK=STATE[4 if dtype == "fp32" else 2])
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = "fp32" if name == "eps" else "i32"
        if name in POINTERS:
            signature[name] = "*fp32" if name in fp32 else f"*{dtype}"
        if signature[name] != "fp32" and name not in ("heads", "strips", "tiles", "first", "ratio", "frames", "latents"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS.get(kernel))


def resources(program, folder):
    """(registers a thread, bytes of stack and local memory a thread)."""
    file = folder / "kernel.cubin"
    file.write_bytes(program.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    text = subprocess.run([tool, "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize("name", KERNELS)
def test_in_bf16(name, arch, tmp_path):
    program = built(KERNELS[name][0], arch, "bf16", *KERNELS[name][1:])
    registers, spilled = resources(program, tmp_path)
    assert spilled == 0, f"{registers} registers, {spilled} bytes spilled"
    assert program.metadata.shared <= SHARED[arch] * 1024


# What is 1 in a launch is known when it is compiled, too; and heads half as wide as the models'.
ONES = {
    "state": dict(DIM=16, BLOCKS=1, k_d=1, v_d=1, tokens=1, heads=1),
    "apply": dict(DIM=16, BLOCK=APPLY, BLOCKS=1, SPLITS=1, q_d=1, tokens=1, heads=1),
    "gated": dict(KERNELS["gated"][2], height=1, width=1, strips=1, hidden=1),
    "rms norm": dict(RESIDUAL=False, ACTIVATION=None, ROWS=4096, CHANNELS=1, pixels=1, channels=1),
    "rope": dict(DIM=16, HEADS=rope.HEADS, heads=1),
    "rotary state": dict(ROTARY, DIM=16, HALF=16, WIDTH=16, OUT=16, RELU=False, BLOCKS=1, tokens=1, heads=1),
    "rotary read": dict(ROTARY, DIM=16, HALF=16, WIDTH=16, OUT=16, RELU=False, BLOCKS=1, tokens=1, heads=1),
    "scale, shift, SiLU": dict(KERNELS["scale, shift, SiLU"][2], **{name: 1 for name in (
        "frames", "height", "width", "latents", "rows", "columns", "ratio", "tiles")}),
}


@pytest.mark.parametrize("arch", [86, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_the_smallest_shapes(name, arch, tmp_path):
    program = built(KERNELS[name][0], arch, "bf16", KERNELS[name][1], ONES[name])
    assert resources(program, tmp_path)[1] == 0


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_in_other_dtypes(name, dtype, tmp_path):
    program = built(KERNELS[name][0], 86, dtype, *KERNELS[name][1:])
    assert resources(program, tmp_path)[1] == 0 and program.metadata.shared <= SHARED[86] * 1024

"""Which way an operation goes, and what happens when a kernel cannot."""

import importlib
import importlib.util
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from sanacog.kernels import dispatch, register
from sanacog.kernels.linear_attention import eager, relu_linear_attention

from . import kernel_cases as cases

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pretend(monkeypatch):
    """The CPU passes for a device with kernels."""
    monkeypatch.setattr(dispatch, "DEVICE", "cpu")
    monkeypatch.setattr(dispatch, "_available", lambda index: True)


def test_the_cpu_is_eager_and_does_not_ask_for_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "_available", lambda index: pytest.fail("asked"))
    assert not dispatch.fusible(torch.ones(2))
    q, k, v = cases.attention_inputs(1, 5, 5, 2, 16)
    assert torch.equal(relu_linear_attention(q, k, v), eager(q, k, v, 1e-15))


def test_what_a_kernel_takes(pretend):
    x = torch.ones(2)
    assert dispatch.fusible(x, x.bfloat16(), x.half())
    assert not dispatch.fusible(x, x.double())
    assert not dispatch.fusible(x, torch.ones(0))
    assert not dispatch.fusible(x, torch.ones(2, device="meta"))
    weight = torch.ones(2, requires_grad=True)
    assert not dispatch.fusible(x, weight)
    with torch.no_grad():
        assert dispatch.fusible(x, weight)


def test_odd_heads_and_mixed_dtypes_are_eager(pretend, monkeypatch):
    monkeypatch.setattr(dispatch, "run", lambda name, *args: name)
    assert relu_linear_attention(*cases.attention_inputs(1, 5, 5, 2, 32)) == "relu_linear_attention"
    assert isinstance(relu_linear_attention(*cases.attention_inputs(1, 5, 5, 2, 12)), torch.Tensor)
    q, k, v = cases.attention_inputs(1, 5, 5, 2, 32)
    assert isinstance(relu_linear_attention(q, k.bfloat16(), v.bfloat16()), torch.Tensor)


@pytest.fixture
def device(monkeypatch):
    """A GPU as far as `_obstacle` sees."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.delenv("SANACOG_KERNELS", raising=False)
    dispatch._available.cache_clear()
    yield
    dispatch._available.cache_clear()


@pytest.mark.parametrize("cause, reason", [
    ("switch", "SANACOG_KERNELS=eager"), ("old GPU", "compute capability is 7.5"), ("no Triton", "Triton is not installed"),
    ("broken Triton", "Triton does not work here, AttributeError: no such name"), ("AMD", "not made for AMD")])
def test_a_reason_is_said_once_and_eager_runs(device, monkeypatch, caplog, cause, reason):
    def importing(error):
        def import_module(*args):
            raise error
        return import_module

    if cause == "switch":
        monkeypatch.setenv("SANACOG_KERNELS", "eager")
    elif cause == "old GPU":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    elif cause == "AMD":
        monkeypatch.setattr(torch.version, "hip", "6.3")
    else:
        error = ImportError("triton") if cause == "no Triton" else AttributeError("no such name")
        monkeypatch.setattr(dispatch.importlib, "import_module", importing(error))
    with caplog.at_level(logging.INFO):
        assert not dispatch.available(0) and not dispatch.available(0)
    assert len(caplog.records) == 1 and reason in caplog.text


@pytest.mark.skipif(not (sys.platform == "linux" and torch.version.cuda), reason="only this torch brings Triton")
def test_triton_came_with_torch():
    """Or the tests of the kernels would be skipped unnoticed."""
    assert importlib.util.find_spec("triton")


def test_the_kernels_are_there_where_triton_is(device, caplog):
    pytest.importorskip("triton")
    with caplog.at_level(logging.INFO):
        assert dispatch.available(0)
    assert not caplog.records
    for name in ("glumbconv", "linear_attention", "rms_norm", "rope", "rotary_attention", "spatial_norm"):
        importlib.import_module(f"sanacog.kernels.{name}")  # each puts its eager form in
    assert set(register._kernels) == set(register._eager) == {
        "relu_linear_attention", "gated_depthwise", "rms_norm", "rotate_pairs", "rotary_state", "rotary_read", "scale_shift_silu"}


class OnGpu:
    """A tensor of a GPU, as far as `launch` sees."""

    is_cuda, device = True, 0


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(register, "_kernels", {})
    monkeypatch.setattr(register, "_eager", {"op": lambda x: "eager"})
    monkeypatch.setattr(register, "_broken", set())
    calls = []

    def add(error=None):
        def fused(x):
            calls.append("fused")
            if error:
                raise error
            return "fused"
        register.add_kernel("op", fused)
    add.calls = calls
    return add


def test_a_kernel_runs(kernel):
    kernel()
    assert dispatch.run("op", OnGpu()) == "fused"


def test_a_failed_kernel_is_off_from_then_on_and_the_log_says_so_once(kernel, caplog):
    kernel(RuntimeError("Failed to find C compiler"))
    assert [dispatch.run("op", OnGpu()) for _ in range(3)] == ["eager"] * 3
    assert kernel.calls == ["fused"]
    assert len(caplog.records) == 1 and "Failed to find C compiler" in caplog.text


def test_a_full_memory_is_no_failure_of_the_kernel(kernel):
    kernel(torch.cuda.OutOfMemoryError("full"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        dispatch.run("op", OnGpu())
    assert not register._broken


def test_importing_and_running_on_the_cpu_leaves_triton_alone():
    """In a process of its own: in this one some other test may have imported it."""
    code = f"""
        import importlib.util, sys
        import torch
        before = "triton" in sys.modules
        spec = importlib.util.spec_from_file_location("run", {str(ROOT / "run.py")!r})
        run = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(run)
        run.import_pack()
        import sanacog.sana_core.autoencoder, sanacog.sana_core.transformer
        import sanacog.cogvideo_core.autoencoder, sanacog.cogvideo_core.transformer
        from sanacog.kernels.linear_attention import relu_linear_attention
        relu_linear_attention(*torch.randn(3, 1, 4, 2, 32))
        print(before, "triton" in sys.modules, "torch._dynamo" in sys.modules, "sanacog.kernels.fused" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd="/", check=False)
    assert done.stdout.split() == ["False"] * 4, done.stdout + done.stderr

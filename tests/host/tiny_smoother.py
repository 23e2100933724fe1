"""Files for ComfyUI's own nodes that put frames between frames and enlarge them: the architectures that it knows, all
weights zero, so that what comes out is known. The host has to be importable."""

from pathlib import Path

from safetensors.torch import save_file

INTERPOLATION, UPSCALER = "zero_rife.safetensors", "zero_upscaler.safetensors"
TIMES = 2  # what the upscaler enlarges by


def save_rife(folder: Path) -> None:
    """RIFE, whose frames in between are then the mean of their neighbours."""
    from comfy_extras.frame_interpolation_models.ifnet import IFNet

    _save(IFNet(head_ch=4, channels=(32, 32, 32, 32, 32)), folder / INTERPOLATION)


def save_upscaler(folder: Path) -> None:
    """Real-ESRGAN's compact network, which then repeats each pixel."""
    from spandrel.architectures.Compact import Compact

    _save(Compact(num_feat=8, num_conv=2, upscale=TIMES), folder / UPSCALER)


def _save(network, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: weight.new_zeros(weight.shape) for key, weight in network.state_dict().items()}, path)

"""TheDenk's ControlNets for CogVideoX as a native CONTROL_NET of the host."""

from __future__ import annotations

from pathlib import Path

import comfy.controlnet
import comfy.model_management as mm
import comfy.ops
import torch

from ...cogvideo_core.config import CONFIG_KEY, CogVideoParams
from ...cogvideo_core.controlnet import FRAMES, PIXELS, CogVideoControlNet
from ...cogvideo_core.controlnet_checkpoint import check_shapes, identify_controlnet, to_canonical
from ...cogvideo_core.lookalikes import strip_prefix
from ...kernels.quant_layers import without_layers
from ..blocks import fastest_attention
from ..compat import load_weights, set_dtype
from ..loading import ModelFile, report, storage_and_compute, weight_dtype_of
from .conditioning import check_frames, fitted
from .model import CogVideoXModel

_PRECISE = ("controlnet_encode_first", "controlnet_encode_second", "patch_embed", "time_embedding")  # as in the base


class CogVideoXControlModel(CogVideoControlNet):
    """The network with the host's calling convention."""

    def __init__(self, params, out_width, device=None, dtype=None, operations=None, compute_dtype=None):
        super().__init__(params, out_width, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype
        if dtype.itemsize == 1:
            for name in _PRECISE:
                set_dtype(getattr(self, name), compute_dtype)

    def forward(self, x, hint, timesteps, context, timestep, rotary, **kwargs):
        # `timesteps` is rounded to the weights' type, `timestep` is what the base sees.
        attention = fastest_attention(x.device)
        hint = hint.expand(len(x), -1, -1, -1, -1)  # a batch of videos follows the same one
        return {"input": super().forward(x, timestep, context, hint, rotary,
                                         attention=lambda q, k, v, heads, mask: attention(q, k, v, heads, mask=mask))}


class CogVideoXControl(comfy.controlnet.ControlNet):
    """The host's ControlNet around it: strength, range of steps, chains and the batch are the host's. Here is what only a
    video's needs: the control video at the latent's size and length, the base's positions, checks before sampling."""

    def __init__(self, control_model, params: CogVideoParams, out_width=None, compute=None):
        # What the host is given as the hint is encoded already, at the latent's own size.
        super().__init__(control_model, compression_ratio=1, load_device=mm.get_torch_device(), manual_cast_dtype=compute,
                         extra_conds=[])
        self.params, self.out_width, self.encoded = params, out_width, None

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        check_base(model, self.params, self.out_width or self.params.width)
        check_control_video(self.cond_hint_original)
        self.set_extra_arg("rotary", model.model_config.params.use_rotary_positional_embeddings)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.cond_hint = self.hint(x_noisy, transformer_options.get("context_window"))
        if hasattr(self, "cond_hints"):  # where hosts to come look for one of this size
            self.cond_hints = {tuple(x_noisy.shape[2:4]): self.cond_hint}
        self.set_extra_arg("timestep", self.model_sampling_current.timestep(t).float())
        return super().get_control(x_noisy, t, cond, batched_number, transformer_options)

    def hint(self, x, window):
        """The control video encoded for x (B, 16, T, h, w) -> (1, channels, T, h, w); of a context window, its frames."""
        windowed = window is not None and window.dim == 2
        length = (getattr(window, "total_frames", 0) or 1 + max(window.index_list)) if windowed else x.shape[2]
        size = length, *x.shape[3:]
        if self.encoded is None or self.encoded.shape[3:] != x.shape[3:] or self.encoded.shape[2] < length:
            frames, dtype = control_frames(self.cond_hint_original, *size), self.manual_cast_dtype or self.control_model.dtype
            self.encoded = self.control_model.encode(frames.to(x.device, dtype))
        return window.get_tensor(self.encoded, x.device, dim=2) if windowed else self.encoded[:, :, :length]

    def inference_memory_requirements(self, dtype):
        """Bytes of what is added to the base's tokens for both halves of CFG, for a video of the control video's size."""
        other, video = super().inference_memory_requirements(dtype), self.cond_hint_original
        if video is None or video.ndim != 4:  # pre_run says so
            return other
        tokens = (1 + len(video) // FRAMES) * video.shape[2] * video.shape[3] // (PIXELS * self.params.patch_size) ** 2
        return other + 2 * tokens * (self.out_width or self.params.width) * self.params.num_layers * dtype.itemsize

    def cleanup(self):
        self.encoded = None
        super().cleanup()

    def copy(self):
        c = CogVideoXControl(None, self.params, self.out_width, self.manual_cast_dtype)
        c.control_model, c.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(c)
        return c


def check_base(model, control: CogVideoParams, out_width: int) -> None:
    """Raise ValueError unless `model` is one that this ControlNet fits."""
    if not isinstance(model, CogVideoXModel):
        raise ValueError("This ControlNet is CogVideoX's, and the model that it should guide is not: use a model from Load "
                         "CogVideoX Model, or this model's own ControlNet.")
    base = model.model_config.params
    if base.patch_size_t:
        raise ValueError("This ControlNet was made for CogVideoX 1.0 (2B, 5B), and the model is a 1.5, whose tokens are of "
                         "two latent frames each. Load a 1.0 model.")
    sizes = {1920: " (2B)", 3072: " (5B)"}
    if out_width != base.width:
        raise ValueError(f"This ControlNet was made for another CogVideoX: what it adds has the width {out_width}"
                         f"{sizes.get(out_width, '')}, the model's is {base.width}{sizes.get(base.width, '')}. Take a "
                         "ControlNet that was made for this model.")
    for name in ("text_embed_dim", "out_channels", "patch_size"):
        if getattr(control, name) != getattr(base, name):
            raise ValueError(f"This ControlNet was made for another CogVideoX: its {name} is {getattr(control, name)}, the "
                             f"model's is {getattr(base, name)}. Take a ControlNet that was made for this model.")
    if control.num_layers > base.num_layers:
        raise ValueError(f"This ControlNet guides {control.num_layers} blocks, and the model has only {base.num_layers}. Take "
                         "a ControlNet that was made for this model.")


def check_control_video(video) -> None:
    """Raise ValueError unless `video` (frames, C, H, W) is one."""
    if video is None or video.ndim != 4 or video.shape[1] < 3:
        found = "missing" if video is None else " x ".join(map(str, video.shape))
        raise ValueError(f"The control video is {found}: expected frames x 3 colours x height x width. Connect the frames, an "
                         "IMAGE, to Apply ControlNet.")
    check_frames(video.movedim(1, -1), "The control video")


def control_frames(video, length: int, height: int, width: int):
    """Control video (F, C, H, W) in [0, 1] -> (1, 3, 4 length - 3, 8 height, 8 width) in [-1, 1], scaled until it covers that
    and cropped; a single picture stands for every frame. Raises ValueError for one with too few frames."""
    wanted = FRAMES * (length - 1) + 1
    if 1 < len(video) < wanted:
        raise ValueError(f"The control video has {len(video)} frames, and the video that is sampled {wanted}: make that one "
                         f"shorter ({1 + (len(video) - 1) // FRAMES * FRAMES} frames), or give a longer control video, or a "
                         "single picture for all frames.")
    frames = fitted(video[:wanted].movedim(1, -1), PIXELS * width, PIXELS * height, "The control video")
    return (2.0 * frames - 1.0).movedim(-1, 0)[None].expand(-1, -1, wanted, -1, -1)


def load_cogvideox_controlnet(path, weight_dtype: str = "default") -> CogVideoXControl:
    """File, sharded folder or diffusers pipeline -> CONTROL_NET. Raises ValueError, naming what the file is instead.

    weight_dtype: a name of loading.WEIGHT_DTYPES.
    """
    dtype, path = weight_dtype_of(weight_dtype), Path(path)
    file = ModelFile(path, CONFIG_KEY, strip_prefix, "controlnet")
    identity = identify_controlnet(file.shapes, file.config, str(path), file.config_place)
    check_shapes(file.shapes, identity, path.name)
    report(path, identity)
    state_dict, layers = file.read(identity.layout, to_canonical, dtype)
    if layers:  # the host's quantised layers are a model's
        state_dict = without_layers(state_dict, layers, torch.bfloat16)

    # The 2B and what goes with it were trained in fp16, told by their width; the 5B in bf16.
    half = [torch.float16] if (identity.out_width or identity.params.width) == 1920 else []
    dtype, compute = storage_and_compute(state_dict, dtype, [*half, torch.bfloat16, torch.float32])
    operations = comfy.ops.disable_weight_init if compute is None else comfy.ops.manual_cast
    network = CogVideoXControlModel(identity.params, identity.out_width, mm.unet_offload_device(), dtype, operations,
                                    compute or dtype).eval()
    if hasattr(mm, "archive_model_dtypes"):  # dynamic patchers read what each weight is to become
        mm.archive_model_dtypes(network)
    control = CogVideoXControl(network, identity.params, identity.out_width, compute)
    load_weights(control.control_model_wrapped, network, network.load_state_dict, state_dict)
    file.first_result(identity.layout, to_canonical).watch(network)
    return control

"""Sana's ControlNet as a native CONTROL_NET of the host."""

from __future__ import annotations

import threading
import weakref
from contextlib import nullcontext
from pathlib import Path

import comfy.controlnet
import comfy.model_management as mm
import comfy.ops
import torch

from ...kernels.quant_layers import without_layers
from ...sana_core.config import CONFIG_KEY, SanaParams
from ...sana_core.controlnet import WIRINGS, SanaControlNet
from ...sana_core.controlnet_checkpoint import check_shapes, identify_controlnet, to_canonical
from ...sana_core.lookalikes import strip_prefix
from .. import text_cache
from ..blocks import fastest_attention
from ..compat import load_weights
from ..loading import ModelFile, report, storage_and_compute, weight_dtype_of
from .model import SanaLatent, SanaModel, inference_dtypes
from .vae import has_sanas_scale

WIRING_CHOICES = ("auto", *WIRINGS)
# The host encodes the control picture at the first step, in a thread a device where it uses several, all with the same VAE.
_ENCODING = threading.RLock()


class SanaControlModel(SanaControlNet):
    """The network with the host's calling convention."""

    def __init__(self, params, num_layers, wiring, device=None, dtype=None, operations=None):
        super().__init__(params, num_layers, wiring, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype

    def forward(self, x, hint, timesteps, context, timestep, base_block=None, attention_mask=None, guidance=None, run=None,
                **kwargs):
        # `timesteps` is rounded to the weights' type, `timestep` is what the base sees.
        text = None if run is None else run.read(self, context, attention_mask)
        residuals = super().forward(x, timestep, context, attention_mask, guidance, control=hint, base_block=base_block,
                                    text=text, attention=fastest_attention(x.device))
        return {"input": residuals}


class SanaControl(comfy.controlnet.ControlNet):
    """The host's ControlNet around it: strength, range of steps, chains, the control picture's size and batch are the
    host's. Here is what only Sana's needs: checks before sampling, and the base's block 0 for the native wiring."""

    def __init__(self, control_model, params: SanaParams, compute=None):
        super().__init__(control_model, compression_ratio=1, latent_format=SanaLatent(), load_device=mm.get_torch_device(),
                         manual_cast_dtype=compute, extra_conds=["attention_mask", "guidance"])
        self.params = params
        self.upscale_algorithm = "area"  # the host's usual one loses thin lines where a picture gets smaller

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        check_base(model, self.params)
        check_hint(self.cond_hint_original, self.vae, self.params)
        if self.control_model.wiring == "native":
            self.set_extra_arg("base_block", base_block(model))

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.set_extra_arg("timestep", t.float() * self.params.timestep_multiplier)  # t is the base's sigma
        if not torch.is_grad_enabled():
            self.set_extra_arg("run", transformer_options.get(text_cache.KEY))
        try:
            encodes = not getattr(self, "cond_hints", self.cond_hint is not None)  # newer hosts keep one of each size
            with _ENCODING if encodes else nullcontext():
                return super().get_control(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            self.extra_args.pop("run", None)  # the host keeps a CONTROL_NET with its arguments

    def copy(self):
        c = SanaControl(None, self.params, self.manual_cast_dtype)
        c.control_model, c.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(c)
        return c


def base_block(model):
    """The running base's block 0, LoRAs and all, for a ControlNet that may compute in another type."""
    dtype = model.manual_cast_dtype or model.get_dtype()
    model = weakref.ref(model)  # the host keeps a CONTROL_NET with its arguments after an interrupt

    def run(x, context, modulation, mask, height, width, attention):
        block = model().diffusion_model.transformer_blocks[0]
        mask = mask if mask is None else mask.to(dtype)
        return block(x.to(dtype), context.to(dtype), modulation.to(dtype), mask, height, width, attention).to(x.dtype)
    return run


def check_base(model, control: SanaParams) -> None:
    """Raise ValueError unless `model` is one that this ControlNet fits."""
    if not isinstance(model, SanaModel):
        raise ValueError("This ControlNet is Sana's, and the model that it should guide is not: use a model from Load Sana "
                         "Model, or this model's own ControlNet.")
    base = model.model_config.params
    for name in ("width", "caption_channels", "in_channels", "patch_size"):
        ours, theirs = getattr(control, name), getattr(base, name)
        if ours != theirs:
            sizes = {1152: " (Sana 0.6B)", 2240: " (Sana 1.6B)"} if name == "width" else {}
            raise ValueError(f"This ControlNet was made for another Sana: its {name} is {ours}{sizes.get(ours, '')}, the "
                             f"model's is {theirs}{sizes.get(theirs, '')}. Take a ControlNet that was made for this model.")
    if control.num_layers >= base.num_layers:
        raise ValueError(f"This ControlNet has {control.num_layers} copied blocks, and the model only {base.num_layers} "
                         "blocks, of which it can guide all but one. Take a ControlNet that was made for this model.")


def check_hint(picture, vae, control: SanaParams) -> None:
    """Raise ValueError unless `picture` (B, C, H, W) can be made this ControlNet's latent by `vae`."""
    if vae is None:
        raise ValueError("Sana's ControlNet reads the control picture as a latent: connect the VAE from Load DC-AE to the vae "
                         "input of Apply ControlNet.")
    if vae.latent_channels != control.in_channels:
        raise ValueError(f"The VAE connected to Apply ControlNet makes latents of {vae.latent_channels} channels, Sana's have "
                         f"{control.in_channels}: connect the one from Load DC-AE.")
    scale = getattr(vae, "latent_scale", SanaLatent.scale_factor)
    if not has_sanas_scale(scale):
        raise ValueError(f"The VAE connected to Apply ControlNet is another model's DC-AE: the scale of its latents is {scale:g}, "
                         f"Sana's is {SanaLatent.scale_factor:g}. Load dc-ae-f32c32-sana-1.1 with Load DC-AE.")
    if picture is None or picture.ndim != 4 or 0 in picture.shape or picture.shape[1] < 3:
        raise ValueError(f"The control picture is {'missing' if picture is None else ' x '.join(map(str, picture.shape))}: "
                         "expected batch x 3 colours x height x width. Connect an IMAGE.")


def load_sana_controlnet(path, weight_dtype: str = "default", wiring: str = "auto") -> SanaControl:
    """File, sharded folder or diffusers pipeline -> CONTROL_NET. Raises ValueError, naming what the file is instead.

    weight_dtype: a name of loading.WEIGHT_DTYPES. wiring: one of WIRING_CHOICES, see controlnet_checkpoint.
    """
    dtype, path = weight_dtype_of(weight_dtype), Path(path)
    file = ModelFile(path, CONFIG_KEY, strip_prefix, "controlnet")
    identity = identify_controlnet(file.shapes, file.config, str(path), wiring, file.config_place)
    check_shapes(file.shapes, identity, path.name)
    report(path, identity)
    state_dict, layers = file.read(identity.layout, to_canonical, dtype)
    if layers:  # the host's quantised layers are a model's
        state_dict = without_layers(state_dict, layers, torch.bfloat16)

    dtype, compute = storage_and_compute(state_dict, dtype, inference_dtypes(identity.params))
    operations = comfy.ops.disable_weight_init if compute is None else comfy.ops.manual_cast
    network = SanaControlModel(identity.params, identity.params.num_layers, identity.wiring, mm.unet_offload_device(), dtype,
                               operations).eval()
    if hasattr(mm, "archive_model_dtypes"):  # dynamic patchers read what each weight is to become
        mm.archive_model_dtypes(network)
    control = SanaControl(network, identity.params, compute)
    load_weights(control.control_model_wrapped, network, network.load_state_dict, state_dict)
    file.first_result(identity.layout, to_canonical).watch(network)
    return control

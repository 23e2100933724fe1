"""Sana as a native MODEL of the host."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...kernels import dispatch
from ...sana_core import nunchaku
from ...sana_core.checkpoint import check_shapes, to_canonical
from ...sana_core.config import CONFIG_KEY, SanaParams, identify
from ...sana_core.lookalikes import strip_prefix
from ...sana_core.memory import numbers_a_token
from ...sana_core.text import token_mask
from ...sana_core.transformer import SanaTransformer, modulate
from .. import sana_checks, text_cache
from ..blocks import host_hooks
from ..compat import layers_for_saving
from ..loading import ModelFile, diffusion_model, report, weight_dtype_of
from ..lora import ReadsDiffusersLoras
from ..previews import rgb_factors
from ..step_cache import IDENTITY
from . import areas, companions
from .companions import PIXELS
from .guidance import replaced_self_attention


class SanaLatent(comfy.latent_formats.LatentFormat):
    """DC-AE latents: 32 channels, 32 x 32 px each, scaled to unit variance for the transformer."""

    latent_channels = 32
    latent_dimensions = 2
    spacial_downscale_ratio = PIXELS
    temporal_downscale_ratio = 1
    scale_factor = 0.41407


class SanaConfig(comfy.supported_models_base.BASE):
    """What the host asks about a Sana model."""

    unet_config = {"image_model": "sana"}
    unet_extra_config = {}
    latent_format = SanaLatent
    vae_key_prefix = ["vae."]
    text_encoder_key_prefix = ["text_encoders."]

    def __init__(self, params: SanaParams):
        super().__init__({"image_model": "sana", "in_channels": params.in_channels, "params": params})
        self.params = params
        latents = self.latent_format
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias = rgb_factors(params.caption_channels)
        self.sampling_settings = {"shift": params.flow_shift, "multiplier": params.timestep_multiplier}
        self.supported_inference_dtypes = inference_dtypes(params)

    def set_inference_dtype(self, dtype, manual_cast_dtype, *args, **kwargs):
        super().set_inference_dtype(dtype, manual_cast_dtype, *args, **kwargs)
        # The host reckons tokens * bytes a number * factor * 0.01 MiB for activations.
        device = mm.get_torch_device()
        fused = device.type == dispatch.DEVICE and dispatch.available(device.index)
        itemsize = (manual_cast_dtype or dtype).itemsize
        self.memory_usage_factor = numbers_a_token(self.params, itemsize, fused) / (0.01 * 1024**2)

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.FLOW

    def get_model(self, state_dict, prefix="", device=None):
        return SanaModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        text = json.dumps(dataclasses.asdict(self.params)).encode()
        state_dict[CONFIG_KEY] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return super().process_unet_state_dict_for_saving(layers_for_saving(state_dict))


def inference_dtypes(params: SanaParams) -> list:
    """What the network may compute in, best first."""
    # Only the checkpoints trained in fp16, with its clip as a part of the model, stay finite in fp16.
    return [torch.bfloat16] + [torch.float16] * params.clamp_fp16 + [torch.float32]


class SanaModel(ReadsDiffusersLoras):
    """Sana inside the host's sampling: which conditions it takes, and which it refuses."""

    def __init__(self, model_config, model_type=comfy.model_base.ModelType.FLOW, device=None):
        super().__init__(model_config, model_type, device=device, unet_model=SanaDiT)

    def extra_conds(self, **kwargs):
        params = self.model_config.params
        if kwargs.get("prompt_type") != "negative":  # once is enough
            sana_checks.check_sampling(self.model_sampling)
            sana_checks.check_compute(self)
            companions.check_latent(kwargs.get("noise"), kwargs.get("latent_image"), params)
        context = kwargs.get("cross_attn")
        sana_checks.check_context(context, params.caption_channels, kwargs.get(sana_checks.TEXT_MARK, False))
        out = super().extra_conds(**kwargs)
        # CONDCrossAttn would repeat tokens up to a common length, which is wrong under a mask.
        out["c_crossattn"] = comfy.conds.CONDRegular(context)
        out["attention_mask"] = comfy.conds.CONDRegular(token_mask(context, kwargs.get("attention_mask")))
        if params.guidance_embeds:
            out["guidance"] = comfy.conds.CONDRegular(torch.tensor([float(kwargs.get("guidance", 4.5))]))
        return out

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        # Here and not in the network, which may be compiled: looking at what is in a text would break its graph.
        options = dict(transformer_options)
        run = options.pop(text_cache.KEY, None)
        if run is not None and text_cache.may_be_kept(self.current_patcher, options):
            states = mm.cast_to_device(c_crossattn, x.device, self.manual_cast_dtype or self.get_dtype())
            mask = kwargs.get("attention_mask")
            kwargs["text"] = run.read(self.diffusion_model, states, mask if mask is None else mask.to(x.device))
        return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def teacache_polynomial(self):
        return IDENTITY  # none is published

    def process_timestep(self, timestep, **kwargs):
        # model_sampling's unit may be another model's: ModelSamplingAuraFlow, ...Flux and ...LTXV set 1, ...SD3 sets 1000.
        unit = float(self.model_sampling.timestep(torch.ones(1)))
        return timestep * (self.model_config.params.timestep_multiplier / unit)


class SanaDiT(SanaTransformer):
    """The transformer with the host's calling convention: wrappers, patches, block replacement, control."""

    def __init__(self, params, device=None, dtype=None, operations=None, **kwargs):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype
        self.in_channels = params.in_channels  # read by RenormCFG

    def forward(self, x, timestep, context, attention_mask=None, guidance=None, control=None, transformer_options={},
                **kwargs):
        # Caching nodes look for transformer_options at the end of the positional arguments.
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options),
        ).execute(x, timestep, context, attention_mask, guidance, control, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, attention_mask=None, guidance=None, control=None, transformer_options={},
                 text=None, **kwargs):
        blocks = len(self.transformer_blocks)
        hooks = host_hooks(blocks, control, transformer_options, self.modulated)
        return super().forward(x, timestep, context, attention_mask, guidance, text=text, **hooks,
                               self_attention=replaced_self_attention(blocks, transformer_options))

    def modulated(self, x, modulation):
        """The modulated input of block 0: x (B, N, D), modulation (B, 6, D) -> (B, N, D)."""
        table = self.transformer_blocks[0].scale_shift_table.to(device=x.device, dtype=x.dtype)
        return modulate(x, *(table + modulation)[:, :2].chunk(2, dim=1))


def load_sana(path, weight_dtype: str = "default", disable_dynamic: bool = False):
    """File, sharded folder or diffusers pipeline -> ModelPatcher. Raises ValueError, naming what the file is instead.

    weight_dtype: a name of loading.WEIGHT_DTYPES. disable_dynamic: the host asks so when it needs a plain patcher.
    """
    dtype, path = weight_dtype_of(weight_dtype), Path(path)
    file = ModelFile(path, CONFIG_KEY, strip_prefix, packed=nunchaku)
    identity = identify(file.shapes, file.config, str(path), file.config_place)
    check_shapes(file.shapes, identity, path.name)
    report(path, identity)
    state_dict, layers = file.read(identity.layout, to_canonical, dtype)
    patcher = diffusion_model(SanaConfig(identity.params), state_dict, dtype, disable_dynamic, layers)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "sanacog_sana", areas.around_sampling)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "sanacog_texts", text_cache.around_sampling)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "sanacog_first_result",
                                 file.first_result(identity.layout, to_canonical).around_model)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "sanacog_companions", companions.around_sampling)
    patcher.cached_patcher_init = (load_sana, (path, weight_dtype))
    return patcher


def empty_latent(width: int, height: int, batch_size: int) -> dict:
    """LATENT of zeros for a picture of width x height px. Raises ValueError unless both are multiples of 32."""
    for name, value, step in (("width", width, PIXELS), ("height", height, PIXELS), ("batch_size", batch_size, 1)):
        if value < step or value % step:
            raise ValueError(f"{name} is {value}: it must be a multiple of {step}, at least {step}.")
    samples = companions.empty_samples(batch_size, SanaLatent.latent_channels, height // PIXELS, width // PIXELS,
                                       mm.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": PIXELS}

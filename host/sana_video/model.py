"""SANA-Video, LongSANA and SANA-Video 2.0 as a native MODEL of the host."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models_base
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...sana_core.lookalikes import strip_prefix
from ...sana_core.text import token_mask
from ...sana_core.video2_transformer import SanaVideo2Transformer
from ...sana_core.video_checkpoint import check_shapes, to_canonical
from ...sana_core.video_config import CONFIG_KEY, SanaVideo2Params, identify
from ...sana_core.video_layers import modulated
from ...sana_core.video_memory import numbers_a_latent_pixel
from ...sana_core.video_transformer import SanaVideoTransformer
from .. import sana_checks, text_cache
from ..blocks import host_hooks
from ..compat import layers_for_saving
from ..loading import ModelFile, diffusion_model, report, weight_dtype_of
from ..lora import ReadsDiffusersLoras
from ..step_cache import IDENTITY
from . import blockwise
from .latents import FORMATS, PARTNERS, tell_of_partner


class SanaVideoConfig(comfy.supported_models_base.BASE):
    """What the host asks about a SANA-Video model."""

    unet_config = {"image_model": "sana_video"}
    unet_extra_config = {}
    vae_key_prefix = ["vae."]
    text_encoder_key_prefix = ["text_encoders."]
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, params):
        self.latent_format = FORMATS[params.latents]
        super().__init__({"image_model": "sana_video", "in_channels": params.in_channels, "params": params})
        self.params = params
        self.sampling_settings = {"shift": params.flow_shift, "multiplier": params.timestep_multiplier}

    def set_inference_dtype(self, dtype, manual_cast_dtype, *args, **kwargs):
        super().set_inference_dtype(dtype, manual_cast_dtype, *args, **kwargs)
        # The host reckons latent pixels * bytes a number * factor * 0.01 MiB for activations.
        self.memory_usage_factor = numbers_a_latent_pixel(self.params, (manual_cast_dtype or dtype).itemsize) / (0.01 * 1024**2)

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.FLOW

    def get_model(self, state_dict, prefix="", device=None):
        return SanaVideoModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        text = json.dumps(dataclasses.asdict(self.params)).encode()
        state_dict[CONFIG_KEY] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return super().process_unet_state_dict_for_saving(layers_for_saving(state_dict))


class SanaVideoModel(ReadsDiffusersLoras):
    """SANA-Video inside the host's sampling: which conditions it takes, which it refuses, and when given frames are."""

    def __init__(self, model_config, model_type=comfy.model_base.ModelType.FLOW, device=None):
        network = SanaVideo2DiT if isinstance(model_config.params, SanaVideo2Params) else SanaVideoDiT
        super().__init__(model_config, model_type, device=device, unet_model=network)
        if network is SanaVideoDiT:  # 2.0's blocks do not add to what the one before gave, so Step Cache cannot leave them out
            self.teacache_polynomial = no_polynomial

    def extra_conds(self, **kwargs):
        params = self.model_config.params
        if kwargs.get("prompt_type") != "negative":  # once is enough
            sana_checks.check_sampling(self.model_sampling)
            sana_checks.check_compute(self)
            check_latent(kwargs.get("noise"), kwargs.get("latent_image"), params)
        context = kwargs.get("cross_attn")
        sana_checks.check_context(context, params.caption_channels, kwargs.get(sana_checks.TEXT_MARK, False))
        out = super().extra_conds(**kwargs)
        # CONDCrossAttn would repeat tokens up to a common length, which is wrong under a mask.
        out["c_crossattn"] = comfy.conds.CONDRegular(context)
        out["attention_mask"] = comfy.conds.CONDRegular(token_mask(context, kwargs.get("attention_mask")))
        if (mask := kwargs.get("denoise_mask")) is not None:
            out["denoise_mask"] = comfy.conds.CONDRegular(mask)
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

    def process_timestep(self, timestep, denoise_mask=None, **kwargs):
        # model_sampling's unit may be another model's, see SanaModel.
        unit = float(self.model_sampling.timestep(torch.ones(1)))
        timestep = timestep * (self.model_config.params.timestep_multiplier / unit)
        return timestep if denoise_mask is None else times_of_parts(timestep, denoise_mask, self.model_config.params.patch_size)

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        return latent_image  # what is given stays clean, and the network is told so


def no_polynomial():
    """Of TeaCache: none is published."""
    return IDENTITY


def times_of_parts(timestep, mask, patch: int):
    """Times of what a mask leaves alone are 0: timestep (B,), mask (B, C, F, H, W), 1 where it is drawn -> (B,) when all is drawn,
    (B, F) when whole frames are given, else (B, N) for every token, whose time is that of its most drawn pixel.

    So the network was trained: on clean first frames beside noisy ones.
    """
    drawn = F.max_pool3d(mask.float().amax(1, keepdim=True), (1, patch, patch))[:, 0]  # (B, F, h, w)
    frames = drawn.amax((2, 3))
    if not torch.equal(frames, drawn.amin((2, 3))):
        frames = drawn.flatten(1)
    elif frames.min() == 1:
        return timestep
    return timestep[:, None] * frames.to(timestep)


def check_latent(noise, latent, params) -> None:
    """Raise ValueError for a latent (B, C, F, H, W) that the model cannot sample."""
    if noise is not None:
        shape, step = tuple(noise.shape), params.patch_size
        if len(shape) != 5 or shape[1] != params.in_channels or 0 in shape or shape[3] % step or shape[4] % step:
            even = f", the last two multiples of {step}" if step > 1 else ""
            raise ValueError(f"This latent is {' x '.join(map(str, shape))}, and this model draws batch x {params.in_channels} x "
                             f"frames x height x width{even}. Its latents are of {PARTNERS[params.latents][0]}: make an empty one "
                             f"with {PARTNERS[params.latents][1]}, or encode with that autoencoder.")
    if latent is not None and not torch.isfinite(latent).all():
        raise ValueError("This latent holds NaN or infinite numbers, from an earlier node: sampling it would give a broken video.")


class HostNetwork:
    """The host's calling convention: wrappers, patches, block replacement."""

    def __init__(self, params, device=None, dtype=None, operations=None, **kwargs):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype
        self.in_channels = params.in_channels  # read by RenormCFG

    def forward(self, x, timestep, context, attention_mask=None, control=None, transformer_options={}, **kwargs):
        # Caching nodes look for transformer_options at the end of the positional arguments.
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options),
        ).execute(x, timestep, context, attention_mask, control, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, attention_mask=None, control=None, transformer_options={}, text=None, **kwargs):
        hooks = host_hooks(len(self.transformer_blocks), control, transformer_options, self.modulated)
        with self.of_run(transformer_options, len(self.transformer_blocks)) as more:
            return super().forward(x, timestep, context, attention_mask, text=text, **hooks, **more)

    def of_run(self, transformer_options, blocks):
        """Context with what else a run has for the network."""
        return nullcontext({})


    modulated = None


class SanaVideoDiT(HostNetwork, SanaVideoTransformer):
    of_run = staticmethod(blockwise.of_run)

    def modulated(self, x, modulation):
        """The modulated input of block 0: x (B, N, D), modulation (B, G, 6, D) -> (B, N, D)."""
        table = self.transformer_blocks[0].scale_shift_table.to(device=x.device, dtype=x.dtype)
        return modulated(x, *(table + modulation).unsqueeze(-2).unbind(2)[:2])


class SanaVideo2DiT(HostNetwork, SanaVideo2Transformer):
    pass


def empty_latent(model, size: tuple[int, int, int], batch_size: int = 1) -> dict:
    """LATENT of zeros of a SANA-Video MODEL. size: frames, height and width, in latent pixels."""
    params = model.model.model_config.params
    return {"samples": torch.zeros(batch_size, params.in_channels, *size, device=mm.intermediate_device())}


def load_sana_video(path, weight_dtype: str = "default", disable_dynamic: bool = False):
    """File, sharded folder or diffusers pipeline -> ModelPatcher. Raises ValueError, naming what the file is instead.

    weight_dtype: a name of loading.WEIGHT_DTYPES. disable_dynamic: the host asks so when it needs a plain patcher.
    """
    dtype, path = weight_dtype_of(weight_dtype), Path(path)
    file = ModelFile(path, CONFIG_KEY, strip_prefix)
    identity = identify(file.shapes, file.config, str(path), file.config_place)
    check_shapes(file.shapes, identity, path.name)
    report(path, identity)
    tell_of_partner(identity.params.latents)
    state_dict, layers = file.read(identity.layout, to_canonical, dtype)
    patcher = diffusion_model(SanaVideoConfig(identity.params), state_dict, dtype, disable_dynamic, layers)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "sanacog_texts", text_cache.around_sampling)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "sanacog_first_result",
                                 file.first_result(identity.layout, to_canonical).around_model)
    patcher.cached_patcher_init = (load_sana_video, (path, weight_dtype))
    return patcher

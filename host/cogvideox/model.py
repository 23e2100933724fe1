"""CogVideoX as a native MODEL of the host."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...cogvideo_core import schedule, teacache
from ...cogvideo_core.checkpoint import check_shapes, to_canonical
from ...cogvideo_core.config import CONDITIONING, CONFIG_KEY, CogVideoParams, identify
from ...cogvideo_core.lookalikes import strip_prefix
from ...cogvideo_core.memory import numbers_a_latent_pixel
from ...cogvideo_core.transformer import CogVideoTransformer
from ..blocks import host_hooks
from ..compat import layers_for_saving, set_dtype
from ..loading import ModelFile, diffusion_model, report, weight_dtype_of
from ..lora import ReadsDiffusersLoras
from ..previews import contact_sheet, video_rgb_factors
from . import idle
from .channels import condition_channels
from .guidance import with_replaced_self_attention
from .sampling import around_sampling

PIXELS, FRAMES = 8, 4              # px a side and frames of one latent pixel
MOTION = "sanacog_motion"          # in transformer_options: tora.Motion
START_PICTURE = "start_picture"    # among what the host hands to a model: of a clip that is drawn in windows
CONDITIONING_CHOICES = ("auto", *CONDITIONING)


class CogVideoXLatent(comfy.latent_formats.LatentFormat):
    """Latents of the causal video VAE: 16 channels, 8 x 8 px and 4 frames each. Their scale is the transformer's."""

    latent_channels = 16
    latent_dimensions = 3
    spacial_downscale_ratio = PIXELS
    temporal_downscale_ratio = FRAMES


class CogVideoXConfig(comfy.supported_models_base.BASE):
    """What the host asks about a CogVideoX model."""

    unet_config = {"image_model": "cogvideox"}
    unet_extra_config = {}
    latent_format = CogVideoXLatent
    vae_key_prefix = ["vae."]
    text_encoder_key_prefix = ["text_encoders."]

    def __init__(self, params: CogVideoParams):
        super().__init__({"image_model": "cogvideox", "in_channels": params.in_channels, "params": params})
        self.params = params
        latents = self.latent_format
        latents.scale_factor = params.scaling_factor
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias = video_rgb_factors(params)
        latents.latent_rgb_factors_reshape = contact_sheet
        # The 2B was trained in fp16, told by its position code; all others in bf16, and 1.5 overflows in fp16.
        half = [torch.bfloat16] if params.use_rotary_positional_embeddings else [torch.float16, torch.bfloat16]
        self.supported_inference_dtypes = half + [torch.float32]
        # The host reckons latent pixels * bytes a number * factor * 0.01 MiB for activations.
        self.memory_usage_factor = numbers_a_latent_pixel(params) / (0.01 * 1024**2)

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION

    def get_model(self, state_dict, prefix="", device=None):
        return CogVideoXModel(self, device=device)

    def set_inference_dtype(self, dtype, manual_cast_dtype, *args, **kwargs):
        super().set_inference_dtype(dtype, manual_cast_dtype, *args, **kwargs)
        self.unet_config["compute_dtype"] = manual_cast_dtype or dtype

    def process_unet_state_dict_for_saving(self, state_dict):
        text = json.dumps(dataclasses.asdict(self.params)).encode()
        state_dict[CONFIG_KEY] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return super().process_unet_state_dict_for_saving(layers_for_saving(state_dict))


class CogVideoXSchedule(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The host's discrete v-prediction with CogVideoX's noise levels: SNR shift of the variant, zero terminal SNR."""

    def __init__(self, model_config):
        super().__init__(model_config)
        self.set_sigmas(schedule.sigmas(model_config.params.snr_shift_scale))


class CogVideoXModel(ReadsDiffusersLoras):
    """CogVideoX inside the host's sampling: its noise levels, which conditions it takes, and which it refuses."""

    def __init__(self, model_config, model_type=comfy.model_base.ModelType.V_PREDICTION, device=None):
        super().__init__(model_config, model_type, device=device, unet_model=CogVideoXDiT)
        self.model_sampling = CogVideoXSchedule(model_config)  # the host has no hook for a class of one's own

    def concat_cond(self, **kwargs):
        params, noise = self.model_config.params, kwargs["noise"]
        latent, mask = kwargs.get("concat_latent_image"), kwargs.get("concat_mask")
        if latent is None and params.conditioning in ("image", "repeated_image", "control", "void"):
            if kwargs.get("prompt_type") == "positive":
                logging.info("CogVideoX: no picture or video was given to a model that takes one; it goes by the text alone")
        return condition_channels(params, noise, latent, mask)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        window = transformer_options.get("context_window")
        if window is not None and c_concat is not None and c_concat.shape[2] != x.shape[2]:
            c_concat = window.get_tensor(c_concat, x.device, dim=2)  # older hosts leave that to no one
        picture = kwargs.pop(START_PICTURE, None)
        if picture is not None and window is not None and window.dim == 2:
            c_concat = with_start_picture(c_concat, picture, window)
        options = dict(transformer_options)
        if options.get(MOTION) is not None:
            options[MOTION] = options[MOTION].of(self.current_patcher)
        said = options.pop(idle.KEY, None)
        if said is not None:
            idle.while_sampling(options, control, self.model_config.params.num_layers, said)
        return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def teacache_polynomial(self):
        return teacache.polynomial(self.model_config.params)

    def extra_conds(self, **kwargs):
        context = kwargs.get("cross_attn")
        check_context(context, self.model_config.params)
        out = super().extra_conds(**kwargs)
        # Text stands in one sequence with the video: CONDCrossAttn, which repeats it up to a common length, would put
        # it there twice.
        out["c_crossattn"] = comfy.conds.CONDRegular(context)
        if "c_concat" in out and self.model_config.params.conditioning == "image":
            out[START_PICTURE] = comfy.conds.CONDRegular(out["c_concat"].cond[:, :, :1])
        return out


def with_start_picture(channels, picture, window):
    """Channels (B, 16, t, h, w) of one context window, begun with the clip's start picture (B, 16, 1, h, w): each window is
    a clip to the model, and without it those after the first would go by the text alone."""
    if 0 in window.index_list or picture.shape[3:] != channels.shape[3:]:
        return channels
    return torch.cat([picture.to(channels), channels[:, :, 1:]], dim=2)


def check_context(context, params: CogVideoParams) -> None:
    """Raise ValueError unless context is (B, L, text_embed_dim), and L no more than a learned position table has rows for."""
    if context is None:
        raise ValueError("CogVideoX got no text. Connect a text encode node to positive and negative.")
    if context.ndim != 3 or context.shape[-1] != params.text_embed_dim:
        kind = {768: " (CLIP-L, as of Stable Diffusion 1.5)", 1024: " (CLIP-H, as of Stable Diffusion 2)",
                2048: " (as of SDXL)", 2304: " (Gemma-2-2B, as of Sana)", 4096: " (T5-XXL)"}.get(context.shape[-1], "")
        raise ValueError(
            f"This text was encoded for another model: its width is {context.shape[-1]}{kind}, this CogVideoX model reads "
            f"{params.text_embed_dim}{' (T5-XXL)' * (params.text_embed_dim == 4096)}. Load the text encoder with Load "
            "CogVideoX Text Encoder.")
    if params.use_learned_positional_embeddings and context.shape[1] > params.max_text_seq_length:
        raise ValueError(
            f"This text has {context.shape[1]} tokens, this model's position table {params.max_text_seq_length}. Encode it "
            "with Load CogVideoX Text Encoder, which cuts it there, and join two prompts with Conditioning (Combine) or "
            "(Average): Conditioning (Concat) makes them one text as long as both.")


class CogVideoXDiT(CogVideoTransformer):
    """The transformer with the host's calling convention: wrappers, patches, block replacement, control."""

    def __init__(self, params, device=None, dtype=None, operations=None, compute_dtype=None, **kwargs):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype
        self.in_channels = params.in_channels  # read by RenormCFG
        if dtype is not None and dtype.itemsize == 1:
            for module in precise_modules(self):
                set_dtype(module, compute_dtype)

    def forward(self, x, timestep, context, control=None, transformer_options={}, **kwargs):
        # Caching nodes look for transformer_options at the end of the positional arguments.
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options),
        ).execute(x, timestep, context, control, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, control=None, transformer_options={}, **kwargs):
        blocks = len(self.transformer_blocks)
        hooks = host_hooks(blocks, control, transformer_options, lambda x, embedding: embedding)
        motion = transformer_options.get(MOTION)
        return super().forward(x, timestep, context, **with_replaced_self_attention(hooks, blocks, transformer_options),
                               adapt=motion and motion.adapt(transformer_options))


def precise_modules(network: CogVideoTransformer) -> list[torch.nn.Module]:
    """What stays in 16 bits or more when the weights are kept in 8: without that 1.5's videos come out black.

    All that stands around the blocks, and in 1.5 the blocks' first modulation: the list that ComfyUI-
    CogVideoXWrapper's users arrived at.
    """
    names = ("patch_embed", "time_embedding", "ofs_embedding", "norm_final", "norm_out", "proj_out")
    found = [getattr(network, name) for name in names if hasattr(network, name)]
    return found + [block.norm1 for block in network.transformer_blocks if network.params.patch_size_t]


def load_cogvideox(path, weight_dtype: str = "default", conditioning: str = "auto", disable_dynamic: bool = False):
    """File, sharded folder or diffusers pipeline -> ModelPatcher. Raises ValueError, naming what the file is instead.

    weight_dtype: a name of loading.WEIGHT_DTYPES. conditioning: a name of CONDITIONING, where the file does not tell
    whether it takes a start picture or a control video; "auto" goes by tensors, config and name. disable_dynamic: the
    host asks so when it needs a plain patcher.
    """
    dtype, path = weight_dtype_of(weight_dtype), Path(path)
    if conditioning not in CONDITIONING_CHOICES:
        raise ValueError(f"conditioning is {conditioning!r}: choose one of {', '.join(CONDITIONING_CHOICES)}.")
    file = ModelFile(path, CONFIG_KEY, strip_prefix)
    identity = identify(file.shapes, file.config, str(path), file.config_place)
    chosen = file.config.get("conditioning", "auto") if file.from_here and conditioning == "auto" else conditioning
    params, evidence = identity.params, identity.evidence
    if chosen not in ("auto", params.conditioning):
        params, evidence = with_conditioning(params, chosen), f"{evidence}; conditioning: {chosen} (chosen)"
    check_shapes(file.shapes, identity, path.name)
    report(path, identity, evidence)
    state_dict, layers = file.read(identity.layout, to_canonical, dtype)
    patcher = diffusion_model(CogVideoXConfig(params), state_dict, dtype, disable_dynamic, layers)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "sanacog_cogvideox", around_sampling)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "sanacog_first_result",
                                 file.first_result(identity.layout, to_canonical).around_model)
    patcher.cached_patcher_init = (load_cogvideox, (path, weight_dtype, conditioning))
    return patcher


def with_conditioning(params: CogVideoParams, kind: str) -> CogVideoParams:
    """The same model, its channels behind the noisy latent read as `kind`. Raises ValueError when they do not fit."""
    extra = params.in_channels - params.out_channels
    if CONDITIONING[kind] != extra:
        fitting = [name for name, channels in CONDITIONING.items() if channels == extra]
        raise ValueError(f"conditioning {kind!r} takes {CONDITIONING[kind]} channels behind the noisy latent, this model has "
                         f"{extra}: choose {' or '.join(['auto', *fitting])}.")
    resize = not params.use_rotary_positional_embeddings and kind in ("inpaint", "control")
    return dataclasses.replace(params, conditioning=kind, resize_positions=resize)


def empty_latent(width: int, height: int, length: int, batch_size: int = 1) -> dict:
    """LATENT of zeros for a video of `length` frames, width x height px.

    Raises ValueError unless width and height are multiples of 8 and length is 4 n + 1.
    """
    for name, value, step in (("width", width, PIXELS), ("height", height, PIXELS), ("batch_size", batch_size, 1)):
        if value < step or value % step:
            raise ValueError(f"{name} is {value}: it must be a multiple of {step}, at least {step}.")
    if length < 1 or length % FRAMES != 1:
        below = max(1, length - (length - 1) % FRAMES)
        raise ValueError(f"length is {length}: it must be 4 n + 1, such as {below} or {below + FRAMES}. CogVideoX makes 49 "
                         "frames, 1.5 makes 81 or 161, and Fun 1.5 makes 85.")
    samples = torch.zeros(batch_size, CogVideoXLatent.latent_channels, (length - 1) // FRAMES + 1, height // PIXELS,
                          width // PIXELS, device=mm.intermediate_device())
    return {"samples": samples, "downscale_ratio_spacial": PIXELS, "downscale_ratio_temporal": FRAMES}

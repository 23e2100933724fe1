"""Random tiny weights of CogVideoX's parts, saved as released files are: clips of 96 x 96 px, prompts of 32 tokens."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from sanacog.cogvideo_core.autoencoder import CogVideoVAE
from sanacog.cogvideo_core.config import CONDITIONING, CogVideoParams, CogVideoVAEParams
from sanacog.cogvideo_core.controlnet import HINT_CHANNELS, CogVideoControlNet
from sanacog.cogvideo_core.tora import MotionFuser, TrajectoryExtractor
from sanacog.cogvideo_core.transformer import CogVideoTransformer

from .tiny import randomise, sentencepiece_model

TEXT_WIDTH, TOKENS = 64, 32
PARAMS = CogVideoParams(num_layers=2, num_attention_heads=2, attention_head_dim=32, time_embed_dim=32,
                        text_embed_dim=TEXT_WIDTH, max_text_seq_length=TOKENS, sample_height=12, sample_width=12)
VAE = CogVideoVAEParams(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4)


def params_of(kind="none", version="1.0"):
    """CogVideoParams of a variant. kind: a name of cogvideo_core.config.CONDITIONING. version: "1.0" or "1.5"."""
    extra = dict(in_channels=16 + CONDITIONING[kind], conditioning=kind)
    if version == "1.5":
        extra |= dict(patch_size_t=2, ofs_embed_dim=32 if kind == "image" else None)
    return replace(PARAMS, **extra)


def transformer(params=PARAMS, seed=0):
    return randomise(CogVideoTransformer(params), seed=seed).eval()


def autoencoder():
    return randomise(CogVideoVAE(VAE), seed=1).eval()


def save(state_dict, path, config):
    save_file({key: t.contiguous() for key, t in state_dict.items()}, path, metadata={"config": json.dumps(config)})
    return Path(path)


def save_transformer(path, params=PARAMS, seed=0):
    return save(transformer(params, seed).state_dict(), path, asdict(params))


def controlnet(params=PARAMS, layers=1, out=None, seed=4):
    """A ControlNet of a base with these params; the code that it adds is sine-cosine, whatever the base's."""
    params = replace(params, num_layers=layers, in_channels=16 + HINT_CHANNELS, conditioning="none", patch_size_t=None,
                     use_rotary_positional_embeddings=False)
    return randomise(CogVideoControlNet(params, out), seed=seed).eval()


def save_controlnet(path, params=PARAMS, layers=1, out=None, seed=4):
    """Its file, with the config that the authors' class writes."""
    net = controlnet(params, layers, out, seed)
    config = {"_class_name": "CogVideoXControlnet", "in_channels": 3, "vae_channels": 16, "downscale_coef": 8, "out_proj_dim": out}
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "time_embed_dim", "max_text_seq_length", "sample_height",
             "sample_width", "patch_size", "use_rotary_positional_embeddings")
    return save(net.state_dict(), path, config | {name: getattr(net.params, name) for name in names})


def tora(params=PARAMS, seed=6):
    """Tora's two parts for a transformer with these params: (fusers, extractor)."""
    fusers = torch.nn.ModuleList([MotionFuser(params.width) for _ in range(params.num_layers)])
    extractor = TrajectoryExtractor(params.num_layers)
    for module in (fusers, extractor):
        randomise(module, seed=seed).eval()
    for name, t in extractor.state_dict().items():
        if "running_var" in name:
            t.abs_().add_(0.5)
    return fusers, extractor


def save_tora(folder, params=PARAMS, seed=6):
    """fuser.safetensors and traj_extractor.safetensors in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for module, name in zip(tora(params, seed), ("fuser", "traj_extractor")):
        save_file({key: t.contiguous() for key, t in module.state_dict().items()}, Path(folder) / f"{name}.safetensors")
    return Path(folder) / "fuser.safetensors", Path(folder) / "traj_extractor.safetensors"


def save_autoencoder(path):
    return save(autoencoder().state_dict(), path, asdict(VAE))


def t5_weights(layers=2, heads=2, head_dim=16, inner=96, vocabulary=480, width=TEXT_WIDTH):
    """A T5 v1.1 encoder in transformers' naming."""
    shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,),
              "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, heads)}
    for i in range(layers):
        first, second = f"encoder.block.{i}.layer.0.", f"encoder.block.{i}.layer.1."
        shapes |= {f"{first}SelfAttention.{part}.weight": (heads * head_dim, width) for part in "qkv"}
        shapes |= {f"{first}SelfAttention.o.weight": (width, heads * head_dim), f"{first}layer_norm.weight": (width,),
                   f"{second}DenseReluDense.wi_0.weight": (inner, width), f"{second}layer_norm.weight": (width,),
                   f"{second}DenseReluDense.wi_1.weight": (inner, width),
                   f"{second}DenseReluDense.wo.weight": (width, inner)}
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.2 + (1.0 if "norm" in name else 0.0)
            for name, shape in shapes.items()}


def save_t5(path, **changes):
    """A text encoder file with its tokenizer inside."""
    weights = t5_weights()
    weights["spiece_model"] = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    return save({key: t for key, t in (weights | changes).items() if t is not None}, path,
                {"max_text_seq_length": TOKENS})


def embedded_params():
    """Of the embedded transformer."""
    from sanacog.cogvideo_core.config import identify
    from sanacog.headless import installation
    from sanacog.storage.checkpoints import open_checkpoint

    embedded = open_checkpoint(installation.ROOT / "models" / "diffusion_models" / "sanacog_tiny_cogvideox.safetensors")
    return identify(embedded.shapes, embedded.config).params


def save_fun_models(folder):
    """Fun models, inpaint and control, with random weights: otherwise as the embedded transformer, so that they go with
    the embedded text encoder and VAE."""
    params = embedded_params()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for kind in ("inpaint", "control"):
        extra = replace(params, in_channels=16 + CONDITIONING[kind], conditioning=kind)
        save_transformer(Path(folder) / f"random_fun_{kind}.safetensors", extra)


def save_controlnet_of_the_embedded(path):
    """A ControlNet with random weights that fits the embedded transformer."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_controlnet(path, embedded_params(), layers=2)


def save_tora_of_the_embedded(folder):
    """Tora's parts with random weights that fit the embedded transformer."""
    save_tora(folder, embedded_params())

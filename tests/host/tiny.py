"""Random tiny weights of Sana's three parts, saved as released files are, and the host imported into this process."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams
from sanacog.sana_core.checkpoint import from_canonical
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.controlnet import SanaControlNet
from sanacog.sana_core.transformer import SanaTransformer

CAPTION = 64
SANA = SanaParams(num_layers=3, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                  caption_channels=CAPTION, sample_size=8)
DCAE = DCAEParams(
    encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
    decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
    encoder_block_out_channels=(8, 8, 16, 16, 32, 32), decoder_block_out_channels=(8, 8, 16, 16, 32, 32),
    encoder_layers_per_block=(0, 1, 1, 1, 1, 1), decoder_layers_per_block=(0, 1, 1, 1, 1, 1),
    encoder_qkv_multiscales=((),) * 5 + ((5,),), decoder_qkv_multiscales=((),) * 5 + ((5,),))
GEMMA = dict(vocab_size=500, hidden_size=CAPTION, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1)
HEAD_DIM = 256  # the host's Gemma-2 has no other


def import_host(place):
    """Put ComfyUI at `place` on the import path and switch it to the CPU. Before any other import of comfy."""
    if "comfy" in sys.modules:
        return
    arguments, sys.argv = sys.argv, ["x", "--cpu"]
    sys.path.insert(0, str(place))
    try:
        import comfy.options
        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  reads sys.argv
    finally:
        sys.argv = arguments


def randomise(module, scale=0.1, seed=0):
    """Weights that make every part of a network matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (1.0 if "norm" in name and p.ndim == 1 else 0))
    return module


def sana(params=SANA, seed=0):
    return randomise(SanaTransformer(params), seed=seed).eval()


def save_sana(path, params=SANA, seed=0, layout="diffusers", **changes):
    """A Sana file. changes: key -> tensor, or None to leave it out."""
    state_dict = from_canonical(sana(params, seed).state_dict(), layout)
    state_dict = {key: t.contiguous() for key, t in (state_dict | changes).items() if t is not None}
    save_file(state_dict, path, metadata={"config": json.dumps(asdict(params))})
    return Path(path)


def controlnet(wiring="native", params=SANA, num_layers=2, seed=5):
    return randomise(SanaControlNet(params, num_layers, wiring), seed=seed).eval()


def save_controlnet(path, wiring="native", params=SANA, num_layers=2, seed=5, **changes):
    """A Sana ControlNet as diffusers writes one, of either wiring. changes: as for save_sana."""
    state_dict = from_canonical(controlnet(wiring, params, num_layers, seed).state_dict(), "diffusers")
    state_dict = {key: t.contiguous() for key, t in (state_dict | changes).items() if t is not None}
    config = asdict(params) | {"num_layers": num_layers, "wiring": wiring}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict, path, metadata={"config": json.dumps(config)})
    return Path(path)


def dcae():
    return randomise(AutoencoderDC(DCAE), seed=1).eval()


def save_dcae(path, layout="diffusers"):
    from sanacog.sana_core.autoencoder_checkpoint import from_canonical as dcae_from_canonical

    state_dict = {key: t.contiguous() for key, t in dcae_from_canonical(dcae().state_dict(), layout).items()}
    save_file(state_dict, path, metadata={"config": json.dumps(asdict(DCAE))})
    return Path(path)


def gemma_weights():
    """A Gemma-2 in transformers' naming, without the prefix."""
    width, inner, query, key = CAPTION, GEMMA["intermediate_size"], 2 * HEAD_DIM, HEAD_DIM
    layer = {"self_attn.q_proj": (query, width), "self_attn.k_proj": (key, width), "self_attn.v_proj": (key, width),
             "self_attn.o_proj": (width, query), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
             "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
             "pre_feedforward_layernorm": (width,), "post_feedforward_layernorm": (width,)}
    shapes = {"embed_tokens.weight": (GEMMA["vocab_size"], width), "norm.weight": (width,)}
    shapes |= {f"layers.{i}.{part}.weight": shape for i in range(2) for part, shape in layer.items()}
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def gemma(weights=None, cap=None):
    """transformers' Gemma-2 with these weights. cap: of the logits of its attention, 50 in the released one."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**GEMMA, head_dim=HEAD_DIM, query_pre_attn_scalar=HEAD_DIM, attn_logit_softcapping=cap,
                          final_logit_softcapping=None, pad_token_id=0, bos_token_id=2, eos_token_id=1,
                          attn_implementation="eager")
    model = Gemma2Model(config).eval()
    model.load_state_dict(weights or gemma_weights())
    return model


def sentencepiece_model():
    """Bytes of a tokenizer with byte fallback, trained on the instruction."""
    import sentencepiece

    from sanacog.sana_core.text import INSTRUCTION

    out = io.BytesIO()
    lines = INSTRUCTION.split("\n") * 4 + ["a large red circle on a blue background"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=480, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        minloglevel=2)
    return out.getvalue()


def save_gemma(path, prefix="model.", tokenizer=True, weights=None, **changes):
    """A text encoder file in HF naming."""
    state_dict = {prefix + key: t for key, t in (weights or gemma_weights()).items()}
    if tokenizer:
        state_dict["spiece_model"] = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    save_file({key: t.contiguous() for key, t in (state_dict | changes).items() if t is not None}, path)
    return Path(path)

"""Quantised weights that neither this pack nor ComfyUI reads: who made them, told from the keys alone."""

from __future__ import annotations

import re

# Who, and what one of the keys looks like. The order matters: Nunchaku's layers have a qweight too.
MAKERS = (
    ("bitsandbytes, 4 bit", r"\.weight\.(quant_state\.bitsandbytes__\w+|quant_map|absmax)"),
    ("bitsandbytes, 8 bit", r"\.(SCB|weight_format)"),
    ("quanto", r"\.weight\._(data|scale|shift|qdata)(\..+)?"),
    ("torchao", r"(\._weight_(qdata|scale|zero_point|per_tensor_scale)|\.weight:\w+)"),
    ("a GGUF quantiser with blocks other than Q4_0 and Q8_0, in a safetensors file", r"\.\w+_qweight"),
    ("Nunchaku (SVDQuant)", r"\.(wscales|wzeros|wtscale|smooth_factor|smooth_orig|proj_down)"),
    ("GPTQ, AWQ or AutoRound", r"\.(qweight|qzeros|g_idx)"),
    ("SDNQ (SD.Next)", r"\.(svd_up|svd_down|zero_point)"),
)
_SCALE = ".scale"  # SDNQ's, beside the weight of a layer

TRANSFORMER_REMEDY = ("Take the file that it was made from, in bf16 or fp16. For less memory choose weight_dtype fp8_e4m3fn with "
                      "it, or make an int8 or fp8 file of it with Quantize Sana / CogVideoX.")
AUTOENCODER_REMEDY = "Take the file that it was made from, in fp32, bf16 or fp16."


def maker_of(keys) -> str:
    """Who quantised the tensors of these names, "" when nobody did that is known here."""
    keys = set(keys)
    for maker, pattern in MAKERS:
        if any(re.search(f"{pattern}$", key) for key in keys):
            return maker
    if any(key.endswith(_SCALE) and key.removesuffix(_SCALE) + ".weight" in keys for key in keys):
        return "SDNQ (SD.Next)"
    return ""


def refuse_foreign(keys, what: str, remedy: str, where: str = "") -> None:
    """Raise ValueError for weights that somebody else quantised. what: "a Sana transformer". where: goes before the message."""
    if maker := maker_of(keys):
        raise ValueError(f"{where}{what} quantised by {maker}, which neither this pack nor ComfyUI reads. {remedy}")

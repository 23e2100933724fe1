"""T5 v1.1 as a native CLIP of the host, reading prompts the way CogVideoX does: always the same number of tokens."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path

import comfy.sd
import torch
from comfy import sd1_clip
from comfy.text_encoders import sd3_clip
from transformers import T5TokenizerFast

from ...cogvideo_core.lookalikes import looks_like
from ...storage import open_checkpoint
from ..clip import (TOKENIZER_KEYS, Pieces, TextEncoder, native_clip, read_tokenizer, tokenizer_beside, tokenizer_inside,
                    watch_clip)
from ..compat import t5_quantisation
from ..files import is_pipeline

NAME = "t5xxl"                # the host's name of this encoder, in token dictionaries and saved files
MAX_TOKENS = 226              # what released transformers read
LENGTH_KEY = "max_text_seq_length"  # in a file's config, and in files saved from here, where it is another number
VOCABULARY = 32128            # rows of the released embedding: its tokenizer is the one that the host ships
TOKENIZER_FILES = ("spiece.model", "tokenizer.model", "tokenizer.json")
WANTED = "the tokenizer of this text encoder"
PAD, END = 0, 1
# Beside the weights of a quantised layer.
_SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".weight_scale_2", ".input_scale", ".comfy_quant")


class EndedPieces(Pieces):
    """Pieces with what the host asks of a tokenizer."""

    @classmethod
    def from_pretrained(cls, data):
        return cls(data)

    def __call__(self, text):
        return {"input_ids": [*self.encode(text), END]}

    def get_vocab(self):
        return {self.piece(i): i for i in range(self.count)}


class T5Tokenizer(sd1_clip.SDTokenizer):
    """Prompt -> exactly so many tokens: the words, the end, padding. tokenizer_data: as for Pieces, none for the host's
    own T5; LENGTH_KEY -> how many tokens.

    Weights as in "(word:1.2)" and escaped brackets are the host's, as with every other T5 in it: a state is moved away
    from the one that an empty prompt has at its place. (Sana's encoder, a causal language model, has no such state.)
    """

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        self.length = tokenizer_data.get(LENGTH_KEY, MAX_TOKENS)
        self.data = {key: tokenizer_data[key] for key in TOKENIZER_KEYS if key in tokenizer_data}
        source = self.data or Path(sd3_clip.__file__).parent / "t5_tokenizer"
        super().__init__(source, embedding_directory=embedding_directory, embedding_key=NAME, embedding_size=4096,
                         tokenizer_class=EndedPieces if self.data else T5TokenizerFast, has_start_token=False,
                         pad_with_end=False, pad_to_max_length=False, max_length=10**8)

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        [row] = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        tail = (0,) if return_word_ids else ()
        while row and isinstance(row[-1][0], int) and row[-1][0] == PAD:
            row.pop()
        if len(row) > self.length:
            logging.info("CogVideoX reads %d tokens: the last %d of this prompt are cut off.", self.length,
                         len(row) - self.length)
            row = [*row[: self.length - 1], (END, 1.0, *tail)]
        return [row + [(PAD, 1.0, *tail)] * (self.length - len(row))]

    def state_dict(self):
        """What the loader needs again and no weight tells, under names that CLIPSave keeps with the weights."""
        own = dict(self.data)
        if self.length != MAX_TOKENS:
            own[LENGTH_KEY] = torch.tensor([self.length])
        return {f"{NAME}.{key}": value for key, value in own.items()}


class CogVideoXTokenizer(sd1_clip.SD1Tokenizer):
    """T5Tokenizer under the host's name."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        super().__init__(embedding_directory, tokenizer_data, name=NAME, tokenizer=T5Tokenizer)


class CogVideoXTextEncoder(TextEncoder):
    """Tokens -> states after the final norm, padding's too: neither T5 nor CogVideoX is given a mask."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, name=NAME, clip_model=sd3_clip.T5XXLModel,
                         model_options=model_options)


def load_t5(path, tokenizer: Path | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """File, sharded folder or diffusers pipeline -> CLIP.

    tokenizer: a file of TOKENIZER_FILES' kinds; None takes the one inside the file, else the host's own for the released
    vocabulary, else one beside the file. Weights stay in the type of the file; the host computes in fp32, as T5
    overflows in fp16. Raises ValueError when it is not a whole T5 encoder, and FileNotFoundError when there is no
    tokenizer.
    """
    path = Path(path)
    pipeline = is_pipeline(path)
    look = functools.partial(open_checkpoint, path, **({"subfolder": "text_encoder"} if pipeline else {}))
    checkpoint = look()
    names = {k: key for k in checkpoint.shapes if (key := canonical_key(k))}
    config = t5_config({key: tuple(checkpoint.shapes[k]) for k, key in names.items()}, checkpoint.shapes, path.name)
    extras = {_plain(k): k for k in checkpoint.shapes if _plain(k) in (*TOKENIZER_KEYS, LENGTH_KEY)}
    inside = [key for key in TOKENIZER_KEYS if key in extras]
    if tokenizer is None and not inside and config["vocab_size"] != VOCABULARY:
        tokenizer = tokenizer_beside(path / "tokenizer" if pipeline else path, TOKENIZER_FILES, WANTED)

    everything = checkpoint.load()
    data = read_tokenizer(tokenizer, WANTED) if tokenizer else {key: everything[extras[key]] for key in inside}
    data = tokenizer_inside(data, path.name) if inside and not tokenizer else data
    if data and (count := Pieces(data).count) > config["vocab_size"]:
        raise ValueError(f"{path.name}: its tokenizer has {count} pieces, the text encoder knows {config['vocab_size']}: "
                         "it is another model's. Choose the right one in tokenizer_name.")
    length = everything[extras[LENGTH_KEY]].item() if LENGTH_KEY in extras else (checkpoint.config or {}).get(LENGTH_KEY)
    data[LENGTH_KEY] = length if isinstance(length, int) and length > 1 else MAX_TOKENS
    state_dict, options = t5_quantisation({key: everything[k] for k, key in names.items()}, checkpoint.metadata)
    del everything
    if "shared.weight" not in state_dict:
        state_dict["shared.weight"] = state_dict["encoder.embed_tokens.weight"]
    state_dict.pop("encoder.embed_tokens.weight", None)

    # The final norm tells the type, as in the host's own loader: in quantised files it is not that of most weights.
    options |= {"dtype": state_dict["encoder.final_layer_norm.weight"].dtype, f"{NAME}_model_config": config}
    clip = native_clip(CogVideoXTokenizer, CogVideoXTextEncoder, state_dict, data, options, path.name, disable_dynamic)
    watch_clip(clip, path.name, lambda: {key: t for k, t in look().load().items() if (key := canonical_key(k))})
    clip.patcher.cached_patcher_init = (_patcher, (path, tokenizer))
    return clip


def canonical_key(key: str) -> str | None:
    """A released or saved file's name of a weight -> the host's ("encoder.block.0..."), None for anything else."""
    match = re.search(r"(?:^|\.)(shared\.weight|encoder\.(?:block\.\d+\..+|final_layer_norm\.weight|embed_tokens\.weight)"
                      r"|scaled_fp8)$", key)
    return None if match is None or key.startswith(("model.diffusion_model.", "vae.")) else match[1]


def t5_config(shapes: dict[str, tuple], raw: dict, name: str) -> dict:
    """{canonical key: shape} -> the host's configuration of the network.

    raw: keys as the file has them. Raises ValueError when it is no encoder of T5 v1.1, or not a whole one.
    """
    first = "encoder.block.0.layer."
    embedding = shapes.get("shared.weight") or shapes.get("encoder.embed_tokens.weight")
    other = None
    if f"{first}0.SelfAttention.q.weight" not in shapes or embedding is None:
        other = looks_like(raw)
    elif any("decoder.block." in key for key in raw):
        other = "a whole T5 with its decoder"
    elif f"{first}1.DenseReluDense.wi.weight" in shapes:
        other = "a T5 of the first version (t5-base and its like)"
    elif "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes:
        other = "a UMT5 text encoder, as of Wan"
    elif embedding[0] == 250112:
        other = "an mT5 text encoder, as of HunyuanDiT"
    if other:
        raise ValueError(f"{name}: not the text encoder of CogVideoX: this is {other}. It reads the encoder of "
                         "t5-v1_1-xxl, such as t5xxl_fp16.safetensors.")

    layers = len({match[1] for key in shapes if (match := re.match(r"encoder\.block\.(\d+)\.", key))})
    vocabulary, width = embedding
    inner, hidden = (shapes.get(f"{first}{part}.weight", (0,))[0]
                     for part in ("0.SelfAttention.q", "1.DenseReluDense.wi_0"))
    heads = shapes.get(f"{first}0.SelfAttention.relative_attention_bias.weight", (0, 0))[-1]
    layer = {"0.SelfAttention.q": (inner, width), "0.SelfAttention.k": (inner, width), "0.SelfAttention.v": (inner, width),
             "0.SelfAttention.o": (width, inner), "0.layer_norm": (width,), "1.layer_norm": (width,),
             "1.DenseReluDense.wi_0": (hidden, width), "1.DenseReluDense.wi_1": (hidden, width),
             "1.DenseReluDense.wo": (width, hidden)}
    expected = {"shared.weight": embedding, "encoder.final_layer_norm.weight": (width,),
                f"{first}0.SelfAttention.relative_attention_bias.weight": (32, heads)}
    expected |= {f"encoder.block.{i}.layer.{part}.weight": shape for i in range(layers) for part, shape in layer.items()}
    # A packed weight has fewer columns than the layer it is of.
    packed = {key[: -len(".comfy_quant")] + ".weight" for key in shapes if key.endswith(".comfy_quant")}
    found = {key: shape for key, shape in shapes.items() if not key.endswith((*_SCALES, "scaled_fp8"))}
    found["shared.weight"] = found.pop("encoder.embed_tokens.weight", embedding)
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
                   and not (key in packed and expected.get(key, (0,))[0] == found.get(key, (1,))[0]))
    if wrong or 0 in (inner, hidden, heads) or inner % heads:
        raise ValueError(f"{name}: not a whole T5 v1.1 encoder: missing, unexpected or of another shape "
                         f"{', '.join(wrong[:6]) or 'heads'}{' ...' * (len(wrong) > 6)}. Get the file again.")
    return {"vocab_size": vocabulary, "d_model": width, "d_kv": inner // heads, "d_ff": hidden, "num_heads": heads,
            "num_layers": layers}


def _plain(key: str) -> str:
    return key.removeprefix("text_encoders.").removeprefix(f"{NAME}.")


def _patcher(path, tokenizer, disable_dynamic=False):
    return load_t5(path, tokenizer, disable_dynamic).patcher

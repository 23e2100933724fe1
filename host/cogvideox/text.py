"""T5 v1.1 as a native CLIP of the host, reading prompts the way CogVideoX does: always the same number of tokens."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.sd
import torch
from comfy import sd1_clip
from comfy.text_encoders import sd3_clip
from transformers import T5TokenizerFast

from ...cogvideo_core.lookalikes import looks_like
from ...kernels.key_names import several_models
from ...kernels.stated_config import Rules, believed, checked
from ..clip import (
    TOKENIZER_KEYS,
    Pieces,
    TextEncoder,
    native_clip,
    read_tokenizer,
    tokenizer_beside,
    tokenizer_inside,
    watch_clip,
)
from ..encoder_file import EncoderFile
from ..processor import multiply_in_bf16

NAME = "t5xxl"                # the host's name of this encoder, in token dictionaries and saved files
MAX_TOKENS = 226              # what released transformers read
LENGTH_KEY = "max_text_seq_length"  # in a file's config, and in files saved from here, where it is another number
VOCABULARY = 32128            # rows of the released embedding: its tokenizer is the one that the host ships
TOKENIZER_FILES = ("spiece.model", "tokenizer.model", "tokenizer.json")
BRACKETS = ("weights", "text")  # what "(word:1.2)" in a prompt is
BRACKETS_OPTION = "cogvideox_brackets"  # the host's tokenizer option of that name
WANTED = "the tokenizer of this text encoder"
PAD, END = 0, 1
ANCHORS = ("encoder.block.0.layer.0.layer_norm.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight")
EMBEDDINGS = ("shared", "relative_attention_bias")


@dataclass(frozen=True)
class T5Stated:
    """What is read of a T5's config: transformers' names, and one of ours."""

    d_model: int
    num_layers: int
    max_text_seq_length: int


RULES = Rules(T5Stated, {LENGTH_KEY: range(2, 4097)}, ("T5", "t5"))


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
    from the one that an empty prompt has at its place. (Sana's encoder, a causal language model, has no such state.) With
    BRACKETS_OPTION "text" they are words like others.
    """

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        self.length = tokenizer_data.get(LENGTH_KEY, MAX_TOKENS)
        self.data = {key: tokenizer_data[key] for key in TOKENIZER_KEYS if key in tokenizer_data}
        source = self.data or Path(sd3_clip.__file__).parent / "t5_tokenizer"
        super().__init__(source, embedding_directory=embedding_directory, embedding_key=NAME, embedding_size=4096,
                         tokenizer_class=EndedPieces if self.data else T5TokenizerFast, has_start_token=False,
                         pad_with_end=False, pad_to_max_length=False, max_length=10**8)

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        if kwargs.get("tokenizer_options", {}).get(BRACKETS_OPTION) == "text":
            kwargs["disable_weights"] = True
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


def load_t5(path, tokenizer: Path | None = None, disable_dynamic: bool = False, brackets: str = "weights") -> comfy.sd.CLIP:
    """File, sharded folder or diffusers pipeline -> CLIP. brackets: one of BRACKETS, else ValueError.

    tokenizer: a file of TOKENIZER_FILES' kinds; None takes the one inside the file, else the host's own for the released
    vocabulary, else one beside the file. Weights stay in the type of the file; the host computes in fp32, as T5
    overflows in fp16, and multiplies in bf16 on a CPU where that is fast. Raises ValueError when it is not a whole T5 encoder, and FileNotFoundError when there is no
    tokenizer.
    """
    if brackets not in BRACKETS:
        raise ValueError(f"brackets is {brackets!r}: choose one of {', '.join(BRACKETS)}.")
    path = Path(path)
    look = partial(EncoderFile, path, ANCHORS, canonical_key, (*TOKENIZER_KEYS, LENGTH_KEY))
    file = look()
    config = t5_config(file)
    length = prompt_length(file, config)
    inside = [key for key in TOKENIZER_KEYS if key in file.extras]
    if tokenizer is None and not inside and config["vocab_size"] != VOCABULARY:
        tokenizer = tokenizer_beside(path / "tokenizer" if file.pipeline else path, TOKENIZER_FILES, WANTED)

    state_dict, layers, extras = file.read()
    data = read_tokenizer(tokenizer, WANTED) if tokenizer else {key: extras[key] for key in inside}
    data = tokenizer_inside(data, path.name) if inside and not tokenizer else data
    if data and (count := Pieces(data).count) > config["vocab_size"]:
        raise ValueError(f"{path.name}: its tokenizer has {count} pieces, the text encoder knows {config['vocab_size']}: "
                         "it is another model's. Choose the right one in tokenizer_name.")
    data[LENGTH_KEY] = saved_length(extras[LENGTH_KEY], path.name) if LENGTH_KEY in extras else length
    if "shared.weight" not in state_dict:
        state_dict = {key.replace("encoder.embed_tokens.", "shared."): t for key, t in state_dict.items()}
        layers = {layer.replace("encoder.embed_tokens", "shared"): entry for layer, entry in layers.items()}
    state_dict = {key: t for key, t in state_dict.items() if not key.startswith("encoder.embed_tokens.")}
    layers.pop("encoder.embed_tokens", None)

    # The final norm tells the type, as in the host's own loader: in quantised files it is not that of most weights.
    dtype = state_dict["encoder.final_layer_norm.weight"].dtype
    wide = dtype if dtype.itemsize > 1 else torch.bfloat16
    state_dict, _, options = file.for_host(state_dict, layers, wide, True, EMBEDDINGS)
    options |= {"dtype": dtype, f"{NAME}_model_config": config}
    clip = native_clip(CogVideoXTokenizer, CogVideoXTextEncoder, state_dict, data, options, path.name, disable_dynamic)
    watch_clip(clip, path.name, lambda: look().read()[0])
    multiply_in_bf16(clip.cond_stage_model, clip.patcher.load_device)
    clip.set_tokenizer_option(BRACKETS_OPTION, brackets)
    clip.patcher.cached_patcher_init = (_patcher, (path, tokenizer))
    return clip


def canonical_key(key: str) -> str | None:
    """The name itself for a tensor of T5's encoder, None for anything else."""
    own = re.fullmatch(r"shared\..+|encoder\.(block\.\d+|final_layer_norm|embed_tokens)\..+|scaled_fp8", key)
    return own and key


def prompt_length(file: EncoderFile, network: dict) -> int:
    """Tokens of a prompt, by the file's config where it says so. network: t5_config's. Raises ValueError for a config with
    values that no T5 has."""
    facts = {"d_model": network["d_model"], "num_layers": network["num_layers"]}
    stated, warnings = believed(
        file.checkpoint.config, file.checkpoint.config_place, RULES, lambda fields: next(
            (f"{name} {fields[name]}, tensors {fact}" for name, fact in facts.items() if fields.get(name, fact) != fact), ""),
        where=f"{file.path.name}: ")
    for warning in warnings:
        logging.warning("%s: %s.", file.path.name, warning)
    return stated.get(LENGTH_KEY, MAX_TOKENS)


def saved_length(tensor: torch.Tensor, name: str) -> int:
    """The same of a file saved from here. Raises ValueError for a number that it cannot be."""
    checked({LENGTH_KEY: tensor.tolist()[0] if tensor.ndim == 1 and len(tensor) else None}, RULES, where=f"{name}: ")
    return int(tensor[0])


def t5_config(file: EncoderFile) -> dict:
    """The host's configuration of the network in a file. Raises ValueError when it is no encoder of T5 v1.1, or not a whole
    one."""
    shapes, raw, name = file.shapes, file.checkpoint.shapes, file.path.name
    first = "encoder.block.0.layer."
    embedding = shapes.get("shared.weight") or shapes.get("encoder.embed_tokens.weight")
    other = None
    if "a T5 text encoder:" not in (what := looks_like(shapes or raw)):
        other = what
    elif any("decoder.block." in key for key in raw):
        other = "a whole T5 with its decoder"
    elif f"{first}1.DenseReluDense.wi.weight" in shapes:
        other = "a T5 of the first version (t5-base and its like)"
    elif "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes:
        other = "a UMT5 text encoder, as of Wan"
    elif embedding and embedding[0] == 250112:
        other = "an mT5 text encoder, as of HunyuanDiT"
    if other:
        raise ValueError(f"{name}: not the text encoder of CogVideoX: this is {other}. It reads the encoder of "
                         f"t5-v1_1-xxl, such as t5xxl_fp16.safetensors.{several_models(raw)}")
    file.refuse_foreign("a T5 text encoder", "Take t5xxl_fp16.safetensors, or for less memory "
                        "t5xxl_fp8_e4m3fn_scaled.safetensors, which ComfyUI's makers offer.")
    if len(embedding or ()) != 2:
        raise ValueError(f"{name}: a T5 text encoder without its embedding: shared.weight is missing or no matrix. Get the "
                         "file again.")

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
    if "shared.weight" not in shapes:
        expected["encoder.embed_tokens.weight"] = expected.pop("shared.weight")
    elif "encoder.embed_tokens.weight" in shapes:
        expected["encoder.embed_tokens.weight"] = embedding
    wrong = file.odd_weights(expected)
    if wrong or 0 in (inner, hidden, heads) or inner % heads:
        raise ValueError(f"{name}: not a whole T5 v1.1 encoder: missing, unexpected or of another shape "
                         f"{', '.join(wrong[:6]) or 'heads'}{' ...' * (len(wrong) > 6)}. Get the file again.")
    return {"vocab_size": vocabulary, "d_model": width, "d_kv": inner // heads, "d_ff": hidden, "num_heads": heads,
            "num_layers": layers}


def _patcher(path, tokenizer, disable_dynamic=False):
    return load_t5(path, tokenizer, disable_dynamic).patcher

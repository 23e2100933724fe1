"""Gemma-2 as a native CLIP of the host, reading prompts the way Sana does."""

from __future__ import annotations

import re
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.text_encoders import llama

from ...sana_core.lookalikes import looks_like
from ...sana_core.text import MAX_TOKENS, PAD, kept_states, token_mask, tokens_of
from ...storage import open_checkpoint
from ..clip import TOKENIZER_KEYS, Pieces, TextEncoder, native_clip, read_tokenizer, tokenizer_beside
from .companions import TEXT_MARK
from ..compat import set_dtype
from ..files import is_pipeline
from ..loading import weight_dtype_of

NAME = "gemma2_2b"            # the host's name of this encoder, in token dictionaries and saved files
INSTRUCTION_OPTION = "sana_instruction"
PADDING_OPTION = "sana_padding"  # encode the padding too, which nothing but NVlabs' negative prompt looks at
HEAD_DIM = 256                # of every Gemma-2 up to 9B; the host's network has no other
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
WANTED = "tokenizer.model or tokenizer.json of gemma-2-2b-it"
BOS = 2


class SanaTokenizer:
    """Text -> tokens, with the host's interface. tokenizer_data: as for Pieces."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        self.pieces = Pieces(tokenizer_data)

    def ids(self, text: str) -> list[int]:
        """Token ids, BOS first."""
        return [BOS] + self.pieces.encode(text)

    def tokenize_with_weights(self, text, return_word_ids=False, tokenizer_options={}, **kwargs):
        """Prompt -> {NAME: [[(id, 1.0), ...]]}. "(word:1.2)" is read as it stands: a language model's states cannot
        be scaled towards those of an empty prompt. Escaped brackets lose their backslash, as everywhere in the host.
        """
        text = text.replace("\\(", "(").replace("\\)", ")")
        ids = tokens_of(self.ids, text, tokenizer_options.get(INSTRUCTION_OPTION, False))
        tail = (0,) if return_word_ids else ()
        padding = {PADDING_OPTION: True} if tokenizer_options.get(PADDING_OPTION) else {}
        return {NAME: [[(i, 1.0) + tail for i in ids]]} | padding

    def untokenize(self, token_weight_pair):
        return [(pair, self.pieces.piece(pair[0])) for pair in token_weight_pair]

    def decode(self, token_ids, skip_special_tokens=True):
        return self.pieces.decode([i for i in token_ids if not (skip_special_tokens and i <= BOS)])

    def state_dict(self):
        return {f"{NAME}.{key}": value for key, value in self.pieces.data.items()}  # where CLIPSave puts the weights


class GemmaStates(sd1_clip.SDClipModel):
    """The host's Gemma-2: states of the last layer after the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, layer="last", dtype=dtype, textmodel_json_config={},
                         special_tokens={"start": BOS, "pad": PAD}, layer_norm_hidden_state=True,
                         model_class=llama.Gemma2_2B, enable_attention_masks=True, return_attention_masks=True,
                         model_options=model_options)
        # Gemma's norms multiply by 1 + weight, which the host adds in the storage type: in bf16 that would round the
        # weight to steps of 1/128.
        for module in self.transformer.modules():
            if isinstance(module, llama.RMSNorm):
                module.float()
        if dtype is not None and dtype.itemsize == 1:
            # Of 8 bits the host would make fp32 for every prompt, all 256,000 rows; 16 bits it looks up as they are.
            set_dtype(self.transformer.model.embed_tokens, torch.bfloat16)


class SanaTextEncoder(TextEncoder):
    """Tokens -> states and mask of the 300 that Sana sees."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, name=NAME, clip_model=GemmaStates, model_options=model_options)

    def encode_token_weights(self, token_weight_pairs):
        padding = token_weight_pairs.get(PADDING_OPTION, False)
        rows = [self._row([pair[0] for pair in row], padding) for row in token_weight_pairs[NAME]]
        states, masks = zip(*rows)
        return torch.cat(states, dim=1), None, {"attention_mask": torch.cat(masks, dim=1), TEXT_MARK: True}

    def _row(self, ids, padding):
        # Without the padding: less than half the work, and the same states (the network is causal).
        length = max(len(ids), MAX_TOKENS)
        count = len(ids) if padding else next((i for i, token in enumerate(ids) if token == PAD), len(ids))
        out = super().encode_token_weights({NAME: [[(token, 1.0) for token in ids[:count]]]})
        return kept_states(out[0], length)


def load_text_encoder(path, tokenizer: Path | None = None, weight_dtype: str = "default",
                      disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """File, sharded folder or diffusers pipeline -> CLIP.

    tokenizer: tokenizer.model or tokenizer.json; None takes the one inside the file, else one beside it.
    weight_dtype: a name of loading.WEIGHT_DTYPES; "default" keeps the file's. The host computes in fp32 in any case.
    Raises ValueError when it is not a whole Gemma-2, and FileNotFoundError when there is no tokenizer.
    """
    path, dtype = Path(path), weight_dtype_of(weight_dtype)
    pipeline = is_pipeline(path)
    checkpoint = open_checkpoint(path, **({"subfolder": "text_encoder"} if pipeline else {}))
    inside = [key for key in TOKENIZER_KEYS if any(_plain(k) == key for k in checkpoint.shapes)]
    shapes = {key: tuple(checkpoint.shapes[k]) for k in checkpoint.shapes if (key := canonical_key(k))}
    config = gemma_config(shapes, checkpoint.shapes, path.name)
    if tokenizer is None and not inside:
        tokenizer = tokenizer_beside(path / "tokenizer" if pipeline else path, TOKENIZER_FILES, WANTED)

    everything = checkpoint.load()
    state_dict = {key: everything[k] for k in list(everything) if (key := canonical_key(k))}
    data = ({key: everything[k] for k in everything if (key := _plain(k)) in inside} if tokenizer is None
            else read_tokenizer(tokenizer, WANTED))
    del everything
    dtype = dtype or comfy.utils.weight_dtype(state_dict)
    # As GemmaStates keeps them: hosts that assign tensors take the type that they have here.
    kept = {"norm.weight": torch.float32} | ({"embed_tokens.weight": torch.bfloat16} if dtype.itemsize == 1 else {})
    for key in state_dict:
        state_dict[key] = state_dict[key].to(next((kept[end] for end in kept if key.endswith(end)), dtype))

    clip = native_clip(SanaTokenizer, SanaTextEncoder, state_dict, data,
                       {"dtype": dtype, f"{NAME}_model_config": config}, path.name, disable_dynamic)
    clip.patcher.cached_patcher_init = (_patcher, (path, tokenizer, weight_dtype))
    return clip


def encode_prompt(clip, text: str, instruction: bool) -> list:
    """CONDITIONING of a prompt, with Sana's instruction before it or without. Raises ValueError for another CLIP."""
    return _encode(clip, text, {INSTRUCTION_OPTION: instruction})


def encode_nvlabs_negative(clip, positive: list, text: str = "") -> list:
    """CONDITIONING of a negative prompt as NVlabs' code has it: seen through the positive prompt's mask.

    There the picture sees as many states of the negative prompt as the positive one has tokens; after the last word they
    are what Gemma makes of its padding. diffusers, and Sana Text Encode, mask each prompt by itself.
    Source: facts/sana.md 2.1. Raises ValueError unless positive is one prompt of 300 tokens, and for another CLIP.
    """
    shapes = [tuple(states.shape) for states, _ in positive]
    if len(shapes) != 1 or shapes[0][1] != MAX_TOKENS:
        raise ValueError("NVlabs' negative prompt goes with one positive prompt of 300 tokens, straight from Sana Text Encode. "
                         f"This is {' and '.join('x'.join(map(str, shape)) for shape in shapes)}: with combined, joined or "
                         "area prompts take Sana Text Encode for the negative one.")
    [(states, values)] = positive
    mask = token_mask(states, values.get("attention_mask"))
    return [[negative * mask[..., None].to(negative), values | {"attention_mask": mask}]
            for negative, values in _encode(clip, text, {PADDING_OPTION: True})]


def _encode(clip, text: str, options: dict) -> list:
    if not isinstance(getattr(clip, "tokenizer", None), SanaTokenizer):
        raise ValueError("This CLIP is another model's text encoder. Sana reads Gemma-2-2B: load it with Load Sana Text "
                         "Encoder.")
    return clip.encode_from_tokens_scheduled(clip.tokenize(text, tokenizer_options=options))


def canonical_key(key: str) -> str | None:
    """A released or saved file's name of a weight -> the host's ("model.layers.0..."), None for anything else."""
    # Rotary frequencies are computed. Scales of quantised files stay, and are refused: without them it would be noise.
    match = re.search(r"(?:^|\.)(layers\.\d+\..+|embed_tokens\.weight|norm\.weight)$", key)
    if match is None or key.startswith(("model.diffusion_model.", "vae.")) or "rotary_emb" in key:
        return None
    return "model." + match[1]


def gemma_config(shapes: dict[str, tuple], raw: dict, name: str) -> dict:
    """{canonical key: shape} -> the host's configuration of the network.

    raw: keys as the file has them. Raises ValueError when it is no Gemma-2, or not a whole one.
    """
    layers = 1 + max((int(key.split(".")[2]) for key in shapes if key.startswith("model.layers.")), default=-1)
    if ("model.layers.0.pre_feedforward_layernorm.weight" not in shapes
            or "model.layers.0.self_attn.q_norm.weight" in shapes or "model.embed_tokens.weight" not in shapes):
        raise ValueError(f"{name}: not a Gemma-2 text encoder: this is {looks_like(raw)}. Sana reads gemma-2-2b-it.")
    vocabulary, width = shapes["model.embed_tokens.weight"]

    def rows(part):
        return shapes.get(f"model.layers.0.{part}.weight", (0,))[0]

    query, key, inner = rows("self_attn.q_proj"), rows("self_attn.k_proj"), rows("mlp.gate_proj")
    layer = {"self_attn.q_proj": (query, width), "self_attn.k_proj": (key, width), "self_attn.v_proj": (key, width),
             "self_attn.o_proj": (width, query), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
             "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
             "pre_feedforward_layernorm": (width,), "post_feedforward_layernorm": (width,)}
    expected = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    expected |= {f"model.layers.{i}.{part}.weight": shape for i in range(layers) for part, shape in layer.items()}
    wrong = sorted(k for k in expected.keys() | shapes.keys() if expected.get(k) != shapes.get(k))
    if wrong or 0 in (query, key, inner) or query % HEAD_DIM or key % HEAD_DIM:
        raise ValueError(f"{name}: not a whole Gemma-2 with heads of {HEAD_DIM}: missing, unexpected or of another shape "
                         f"{', '.join(wrong[:6]) or 'q_proj, k_proj'}{' ...' * (len(wrong) > 6)}. Get the file again.")
    return {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": query // HEAD_DIM, "num_key_value_heads": key // HEAD_DIM}


def _plain(key: str) -> str:
    return key.removeprefix("text_encoders.").removeprefix(f"{NAME}.")


def _patcher(path, tokenizer, weight_dtype, disable_dynamic=False):
    return load_text_encoder(path, tokenizer, weight_dtype, disable_dynamic).patcher

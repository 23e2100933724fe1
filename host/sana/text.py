"""Gemma-2 as a native CLIP of the host, reading prompts the way Sana does."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.text_encoders import llama

from ...kernels.key_names import several_models
from ...sana_core.lookalikes import looks_like
from ...sana_core.text import MAX_TOKENS, PAD, VIDEO, kept_states, token_mask, tokens_of, with_motion_score
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
from ..compat import set_dtype
from ..encoder_file import EncoderFile
from ..loading import weight_dtype_of
from ..processor import multiply_in_bf16
from ..sana_checks import TEXT_MARK

NAME = "gemma2_2b"            # the host's name of this encoder, in token dictionaries and saved files
INSTRUCTION_OPTION = "sana_instruction"
PADDING_OPTION = "sana_padding"  # encode the padding too, which nothing but NVlabs' negative prompt looks at
HEAD_DIM = 256                # of every Gemma-2 up to 9B; the host's network has no other
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
WANTED = "tokenizer.model or tokenizer.json of gemma-2-2b-it"
BOS = 2
VOCABULARY = 256000           # rows of the released embedding, each the piece of a tokenizer
ANCHORS = ("layers.0.pre_feedforward_layernorm.weight", "layers.0.self_attn.q_proj.weight", "embed_tokens.weight")
EMBEDDINGS = ("embed_tokens",)
TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"  # of a conversation with the released model
END = 1                       # of a text
CAP_OPTION = "sana_attention_cap"  # among the host's model options: what attention's logits are capped at
LOGITS_CAP_OPTION = "sana_logits_cap"  # what the logits of its next word are capped at
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # of gemma-2-2b-it, for files without a config
VIDEO_INSTRUCTIONS = {"as trained": True, "diffusers": VIDEO, "none": False}


class SanaTokenizer:
    """Text -> tokens, with the host's interface. tokenizer_data: as for Pieces."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        self.pieces = Pieces(tokenizer_data)

    def ids(self, text: str) -> list[int]:
        """Token ids, BOS first."""
        return [BOS] + self.pieces.encode(text)

    def turn_ids(self, text: str) -> list[int]:
        """The same of a text with TURN and TURN_END in it; one without is made a person's turn, and the model's begins."""
        if TURN not in text:
            text = f"{TURN}user\n{text}{TURN_END}\n{TURN}model\n"
        ids = [BOS]
        for part in filter(None, re.split(f"({TURN}|{TURN_END})", text)):
            known = part in (TURN, TURN_END) and self.turns_known()
            ids += [self.pieces.id(part)] if known else self.pieces.encode(part)
        return ids

    def turns_known(self) -> bool:
        return all(self.pieces.piece(self.pieces.id(part) or 0) == part for part in (TURN, TURN_END))

    def tokenize_with_weights(self, text, return_word_ids=False, tokenizer_options={}, **kwargs):
        """Prompt -> {NAME: [[(id, 1.0), ...]]}. "(word:1.2)" is read as it stands: a language model's states cannot
        be scaled towards those of an empty prompt. Escaped brackets lose their backslash, as everywhere in the host.

        With skip_template, which the host's nodes give when they have text written, it is all of the text, without padding:
        as it stands when it is True, else as one turn of a conversation.
        """
        if "skip_template" in kwargs:
            return {NAME: [[(i, 1.0) for i in (self.ids if kwargs["skip_template"] else self.turn_ids)(text)]]}
        text = text.replace("\\(", "(").replace("\\)", ")")
        ids = tokens_of(self.ids, text, tokenizer_options.get(INSTRUCTION_OPTION, False))
        tail = (0,) if return_word_ids else ()
        padding = {PADDING_OPTION: True} if tokenizer_options.get(PADDING_OPTION) else {}
        return {NAME: [[(i, 1.0) + tail for i in ids]]} | padding

    def untokenize(self, token_weight_pair):
        return [(pair, self.pieces.piece(pair[0])) for pair in token_weight_pair]

    def decode(self, token_ids, skip_special_tokens=True):
        special = {*range(BOS + 1)} | ({self.pieces.id(part) for part in (TURN, TURN_END)} if self.turns_known() else set())
        return self.pieces.decode([i for i in token_ids if not (skip_special_tokens and i in special)])

    def state_dict(self):
        return {f"{NAME}.{key}": value for key, value in self.pieces.data.items()}  # where CLIPSave puts the weights


class GemmaStates(sd1_clip.SDClipModel):
    """The host's Gemma-2: states of the last layer after the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, layer="last", dtype=dtype, textmodel_json_config={},
                         special_tokens={"start": BOS, "pad": PAD}, layer_norm_hidden_state=True,
                         model_class=llama.Gemma2_2B, enable_attention_masks=True, return_attention_masks=True,
                         model_options=model_options)
        if cap := model_options.get(CAP_OPTION):
            for module in self.transformer.modules():
                if isinstance(module, llama.Attention):
                    module.register_forward_pre_hook(lambda module, args, values: (
                        args, values | {"optimized_attention": partial(capped_attention, cap)}), with_kwargs=True)
        logits = getattr(self.transformer, "logits", None)  # of hosts that have text written, which leave this cap out too
        if logits and (last := model_options.get(LOGITS_CAP_OPTION)):
            self.transformer.logits = lambda x: capped(logits(x), last)
        # Gemma's norms multiply by 1 + weight, which the host adds in the storage type: in bf16 that would round the
        # weight to steps of 1/128.
        for module in self.transformer.modules():
            if isinstance(module, llama.RMSNorm):
                module.float()
        if dtype is not None and dtype.itemsize == 1:
            # Of 8 bits the host would make fp32 for every prompt, all 256,000 rows; 16 bits it looks up as they are.
            set_dtype(self.transformer.model.embed_tokens, torch.bfloat16)


def capped(logits, cap: float):
    """cap * tanh(logits / cap), in the type of the logits."""
    return (logits.float() / cap).tanh_().mul_(cap).to(logits.dtype)


def capped_attention(cap: float, q, k, v, heads, mask=None, **kwargs):
    """Gemma-2's attention, which the host's network leaves to functions that know no cap: logits are cap * tanh(logits / cap)
    before the mask. q (B, heads, N, d), k and v (B, heads or fewer, N, d), mask (..., N, N), added -> (B, N, heads * d).

    In fp32, 4 * heads * N^2 bytes: 12 MB for an instruction and 300 tokens. Source: transformers' eager Gemma-2.
    """
    k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
    logits = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    logits = logits.div_(cap).tanh_().mul_(cap)
    weights = (logits if mask is None else logits + mask).softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


def cap_of(name: str, config: dict | None, vocabulary: int) -> float | None:
    """What a Gemma-2's logits are capped at, None for nothing: as its config says, else as released. name: of CAPS."""
    if config and config.get("vocab_size") == vocabulary and name in config:
        return config[name]
    return CAPS[name] if vocabulary == VOCABULARY else None


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
    weight_dtype: a name of loading.WEIGHT_DTYPES; "default" keeps the file's. The host computes in fp32 in any case,
    and multiplies in bf16 on a CPU where that is fast, unless fp32 was chosen.
    Layers that are quantised in a form of the host's stay so with "default", and are turned back otherwise. Raises
    ValueError when it is not a whole Gemma-2, and FileNotFoundError when there is no tokenizer.
    """
    path, dtype = Path(path), weight_dtype_of(weight_dtype)
    look = partial(EncoderFile, path, ANCHORS, canonical_key, TOKENIZER_KEYS)
    file = look()
    config = gemma_config(file)
    if tokenizer is None and not file.extras:
        tokenizer = tokenizer_beside(path / "tokenizer" if file.pipeline else path, TOKENIZER_FILES, WANTED)

    state_dict, layers, data = file.read()
    data = read_tokenizer(tokenizer, WANTED) if tokenizer else tokenizer_inside(data, path.name)
    check_tokenizer(Pieces(data).count, config["vocab_size"], path.name)
    kept = dtype is None
    dtype = dtype or (plain_dtype(state_dict) if layers else comfy.utils.weight_dtype(state_dict))
    wide = dtype if dtype.itemsize > 1 else torch.bfloat16
    state_dict, layers, options = file.for_host(state_dict, layers, wide, kept, EMBEDDINGS)
    # As GemmaStates keeps them: hosts that assign tensors take the type that they have here.
    special = {"norm.weight": torch.float32} | ({"embed_tokens.weight": torch.bfloat16} if dtype.itemsize == 1 else {})
    for key in state_dict:
        if key.rpartition(".")[0] not in layers:
            state_dict[key] = state_dict[key].to(next((special[end] for end in special if key.endswith(end)), dtype))

    clip = native_clip(SanaTokenizer, SanaTextEncoder, state_dict, data,
                       options | {"dtype": dtype, f"{NAME}_model_config": config,
                                  CAP_OPTION: cap_of("attn_logit_softcapping", file.checkpoint.config, config["vocab_size"]),
                                  LOGITS_CAP_OPTION: cap_of("final_logit_softcapping", file.checkpoint.config,
                                                            config["vocab_size"])},
                       path.name, disable_dynamic)
    stop_at_end_of_turn(clip)
    watch_clip(clip, path.name, lambda: look().read()[0])
    if weight_dtype != "fp32":
        multiply_in_bf16(clip.cond_stage_model, clip.patcher.load_device)
    clip.patcher.cached_patcher_init = (_patcher, (path, tokenizer, weight_dtype))
    return clip


def stop_at_end_of_turn(clip) -> None:
    """The host ends what this network writes at the end of a text; the released one ends a turn of its own before."""
    pieces = clip.tokenizer.pieces
    if clip.tokenizer.turns_known():
        getattr(clip.cond_stage_model, NAME).transformer.model.config.stop_tokens = [END, pieces.id(TURN_END)]


def encode_prompt(clip, text: str, instruction: bool | str) -> list:
    """CONDITIONING of a prompt. instruction: before it, a key of sana_core.text.INSTRUCTIONS. Raises ValueError for another
    CLIP."""
    return _encode(clip, text, {INSTRUCTION_OPTION: instruction})


def encode_video_prompt(clip, text: str, motion_score: int, instruction: str) -> list:
    """CONDITIONING of a prompt for SANA-Video. motion_score: as in with_motion_score. instruction: a name of
    VIDEO_INSTRUCTIONS. Raises ValueError for another CLIP."""
    return encode_prompt(clip, with_motion_score(text, motion_score), VIDEO_INSTRUCTIONS[instruction])


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


def plain_dtype(state_dict: dict) -> torch.dtype:
    """The type of what is not quantised in a file with quantised layers: its norms tell."""
    dtype = state_dict["model.norm.weight"].dtype
    return dtype if dtype.itemsize > 1 else torch.bfloat16


def check_tokenizer(count: int, vocabulary: int, name: str) -> None:
    """Raise ValueError unless a tokenizer of `count` pieces can be that of an embedding of `vocabulary` rows."""
    if count > vocabulary or vocabulary == VOCABULARY and count < 0.9 * VOCABULARY:
        raise ValueError(f"{name}: the tokenizer has {count} pieces, the text encoder knows {vocabulary}: it is another "
                         f"model's. Choose {WANTED} in tokenizer_name, or put it beside the file.")


def canonical_key(key: str) -> str | None:
    """A name as the network of Gemma has it -> the host's ("model.layers.0..."), None for anything else."""
    # Rotary frequencies are computed.
    own = re.fullmatch(r"(layers\.\d+|embed_tokens|norm)\..+", key) and "rotary_emb" not in key
    return "model." + key if own else "scaled_fp8" if key == "scaled_fp8" else None


def gemma_config(file: EncoderFile) -> dict:
    """The host's configuration of the network in a file. Raises ValueError when it is no Gemma-2, or not a whole one."""
    shapes, raw, name = file.shapes, file.checkpoint.shapes, file.path.name
    layers = len({key.split(".")[2] for key in shapes if key.startswith("model.layers.")})
    if "a Gemma 2 text encoder:" not in (what := looks_like(shapes or raw)):
        raise ValueError(f"{name}: not a Gemma-2 text encoder: this is {what}. Sana reads gemma-2-2b-it.{several_models(raw)}")
    file.refuse_foreign("a Gemma-2 text encoder", "Take the bf16 file that it was made from. For less memory choose "
                        "weight_dtype fp8_e4m3fn with it.")
    if len(shapes.get("model.embed_tokens.weight", ())) != 2:
        raise ValueError(f"{name}: a Gemma-2 text encoder without its embedding: model.embed_tokens.weight is missing or no "
                         "matrix. Get the file again.")
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
    wrong = file.odd_weights(expected)
    if wrong or 0 in (query, key, inner) or query % HEAD_DIM or key % HEAD_DIM:
        raise ValueError(f"{name}: not a whole Gemma-2 with heads of {HEAD_DIM}: missing, unexpected or of another shape "
                         f"{', '.join(wrong[:6]) or 'q_proj, k_proj'}{' ...' * (len(wrong) > 6)}. Get the file again.")
    return {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": query // HEAD_DIM, "num_key_value_heads": key // HEAD_DIM}


def _patcher(path, tokenizer, weight_dtype, disable_dynamic=False):
    return load_text_encoder(path, tokenizer, weight_dtype, disable_dynamic).patcher

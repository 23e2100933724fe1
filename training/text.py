"""Sana's and CogVideoX' text encoders through transformers, giving what the nodes give.

Weights keep their file's type; every product is computed in fp32, as in the nodes: encoders run once for each caption.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from ..cogvideo_core.lookalikes import looks_like as looks_like_cogvideox
from ..kernels.key_names import prefix_of
from ..kernels.quant_layers import LEAVES, MARKER, from_metadata, read_layers, without_layers
from ..kernels.state_dict import some
from ..sana_core.lookalikes import looks_like as looks_like_sana
from ..sana_core.text import MAX_TOKENS, PAD, kept_states, tokens_of
from ..storage.checkpoints import check_finite, open_checkpoint

BOS, END = 2, 1               # Gemma's first token; T5's last one, whose padding is 0 too
GEMMA_HEAD_DIM = 256          # of every Gemma-2 up to 9B
RELEASED_VOCABULARY, RELEASED_CAP = 256000, 50.0  # of gemma-2-2b-it, for files without a config
TOKENIZERS = ("spiece.model", "tokenizer.model", "tokenizer.json")
INSIDE = ("spiece_model", "tokenizer_json")  # tensors of bytes in files of this pack and of ComfyUI
LENGTH_KEY = "max_text_seq_length"


class Gemma:
    """Gemma-2 as Sana reads it: the instruction in front, 300 tokens kept. path: a file or folder, its tokenizer inside or
    beside it. Raises ValueError, FileNotFoundError."""

    def __init__(self, path):
        file = _File(path, ("layers.0.pre_feedforward_layernorm.weight", "embed_tokens.weight"), _gemma_name)
        if "a Gemma 2 text encoder:" not in (what := looks_like_sana(file.shapes)):
            raise ValueError(f"{file.path.name}: not a Gemma-2 text encoder: this is {what}. Sana reads gemma-2-2b-it.")
        embedding, stated = file.shapes["embed_tokens.weight"], file.config or {}
        query, key, inner = (file.shapes[f"layers.0.{part}.weight"][0]
                             for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))
        cap = RELEASED_CAP if embedding[0] == RELEASED_VOCABULARY else None
        if stated.get("vocab_size") == embedding[0]:
            cap = stated.get("attn_logit_softcapping", cap)
        config = transformers.Gemma2Config(
            vocab_size=embedding[0], hidden_size=embedding[1], intermediate_size=inner, head_dim=GEMMA_HEAD_DIM,
            num_attention_heads=query // GEMMA_HEAD_DIM, num_key_value_heads=key // GEMMA_HEAD_DIM,
            num_hidden_layers=len({name.split(".")[1] for name in file.shapes if name.startswith("layers.")}),
            query_pre_attn_scalar=GEMMA_HEAD_DIM, attn_logit_softcapping=cap, use_cache=False,
            attn_implementation="eager")  # the one that has the cap
        self.encode_pieces = file.tokenizer("tokenizer.model or tokenizer.json of gemma-2-2b-it", embedding[0])
        self.model = file.network(transformers.Gemma2Model, config)

    def ids(self, prompt: str) -> list[int]:
        return [BOS, *self.encode_pieces(prompt)]

    @torch.no_grad()
    def encode(self, prompt: str, instruction: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """(states (T, D) fp32, mask (T,) of ones) of the kept tokens of one prompt, T <= 300; padding is left out."""
        tokens = tokens_of(self.ids, prompt, instruction)
        count = next((i for i, token in enumerate(tokens) if token == PAD), len(tokens))
        states, mask = kept_states(self._states(tokens[:count]), max(len(tokens), MAX_TOKENS))
        used = mask[0].bool()
        return states[0, used].cpu(), mask[0, used].cpu()

    @torch.no_grad()
    def encode_empty(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(states (300, D), mask (300,)) of the empty prompt, with what Gemma makes of its padding: what NVlabs trains with,
        where a dropped caption shows as many tokens as it had."""
        tokens = tokens_of(self.ids, "", False)
        mask = torch.tensor([int(token != PAD) for token in tokens])
        return self._states(tokens, mask[None])[0].cpu(), mask

    def _states(self, tokens, mask=None):
        device = self.model.embed_tokens.weight.device
        mask = None if mask is None else mask.to(device)
        return self.model(input_ids=torch.tensor([tokens], device=device), attention_mask=mask).last_hidden_state.float()


class T5:
    """T5 v1.1's encoder as CogVideoX reads it: always so many tokens, no mask. path: as for Gemma. length: tokens of a prompt
    where the file does not say."""

    def __init__(self, path, length: int):
        file = _File(path, ("encoder.block.0.layer.0.SelfAttention.q.weight",), _t5_name)
        first = "encoder.block.0.layer."
        if "a T5 text encoder:" not in (what := looks_like_cogvideox(file.shapes)) or f"{first}1.DenseReluDense.wi_0.weight" \
                not in file.shapes or "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in file.shapes:
            raise ValueError(f"{file.path.name}: not the text encoder of CogVideoX: this is {what}. It reads the encoder of "
                             "t5-v1_1-xxl.")
        if "shared.weight" not in file.shapes:
            file.rename("encoder.embed_tokens.weight", "shared.weight")
        embedding = file.shapes["shared.weight"]
        inner, hidden = (file.shapes[f"{first}{part}.weight"][0] for part in ("0.SelfAttention.q", "1.DenseReluDense.wi_0"))
        heads = file.shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"][1]
        config = transformers.T5Config(
            vocab_size=embedding[0], d_model=embedding[1], d_kv=inner // heads, d_ff=hidden, num_heads=heads,
            num_layers=len({name.split(".")[2] for name in file.shapes if name.startswith("encoder.block.")}),
            feed_forward_proj="gated-gelu", use_cache=False)
        saved = file.extra(LENGTH_KEY)
        stated = (file.config or {}).get(LENGTH_KEY)
        self.length = int(saved[0]) if saved is not None else stated if isinstance(stated, int) else length
        self.encode_pieces = file.tokenizer("spiece.model of t5-v1_1-xxl", embedding[0])
        self.model = file.network(transformers.T5EncoderModel, config)

    @torch.no_grad()
    def encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(states (T, D) fp32, mask (T,) of ones) of one prompt and its padding."""
        tokens = [*self.encode_pieces(prompt)[: self.length - 1], END]
        tokens += [PAD] * (self.length - len(tokens))
        ids = torch.tensor([tokens], device=self.model.shared.weight.device)
        return self.model(input_ids=ids).last_hidden_state[0].float().cpu(), torch.ones(self.length, dtype=torch.long)

    def encode_empty(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode("")


class _File:
    """A text encoder on disk. shapes: by the network's names."""

    def __init__(self, path, anchors: Sequence[str], canonical: Callable[[str], str | None]):
        path = Path(path)
        pipeline = (path / "model_index.json").is_file()
        self.path = path / "text_encoder" if pipeline else path
        self.checkpoint = open_checkpoint(self.path)
        keys = self.checkpoint.shapes
        prefix = next((before for anchor in anchors if (before := prefix_of(keys, anchor)) is not None), None)
        found = {} if prefix is None else {key: canonical(key[len(prefix):]) for key in keys if key.startswith(prefix)}
        self.names = {name: key for key, name in found.items() if name}
        # What our tokenizers keep, and a marker of quantised files, may stand less deep than the weights.
        self.above = {key.rpartition(".")[2]: key for key in keys
                      if (prefix or "").startswith(key.removesuffix(key.rpartition(".")[2]))}
        if MARKER in self.above:
            self.names[MARKER] = self.above[MARKER]
        self.config = self.checkpoint.config

    @property
    def shapes(self) -> dict[str, tuple]:
        return {name: tuple(self.checkpoint.shapes[key]) for name, key in self.names.items()
                if not (name == MARKER or name.rpartition(".")[2] in LEAVES)}

    def rename(self, old: str, new: str) -> None:
        self.names[new] = self.names.pop(old)

    def extra(self, leaf: str) -> torch.Tensor | None:
        return self.checkpoint.load()[self.above[leaf]] if leaf in self.above else None

    def tokenizer(self, wanted: str, vocabulary: int) -> Callable[[str], list[int]]:
        """Text -> ids without special tokens, by the tokenizer inside the file, or beside it."""
        for leaf in INSIDE:
            if (data := self.extra(leaf)) is not None:
                return _pieces(data.numpy().tobytes(), leaf == "tokenizer_json", self.path.name, vocabulary)
        folder = self.path if self.path.is_dir() else self.path.parent
        for file in (place / name for place in (folder, folder.parent / "tokenizer", folder / "tokenizer") for name in TOKENIZERS):
            if file.is_file():
                return _pieces(file.read_bytes(), file.suffix == ".json", file, vocabulary)
        raise FileNotFoundError(f"{self.path}: no tokenizer inside it, and no {' or '.join(TOKENIZERS)} in {folder}. Copy {wanted} "
                                "there.")

    def network(self, kind: type, config) -> nn.Module:
        """transformers' network with these weights. Raises ValueError unless they are exactly its own."""
        everything = self.checkpoint.load()
        tensors = {name: everything[key] for name, key in self.names.items()}
        told = from_metadata(self.checkpoint.metadata)
        entries = {name.removesuffix(".weight"): told[layer] for name, key in self.names.items()
                   if (layer := key.removesuffix(".weight")) in told}
        try:
            tensors, layers = read_layers(tensors, entries)
            tensors = without_layers(tensors, layers, torch.bfloat16)
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from None
        check_finite(tensors, self.path.name)
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in kind._from_config(config).state_dict().items()
                        if name != "encoder.embed_tokens.weight"}
        tensors.pop("encoder.embed_tokens.weight", None)  # of a T5, once more `shared`
        wrong = {name for name in expected.keys() | tensors.keys()
                 if name not in expected or name not in tensors or expected[name] != tuple(tensors[name].shape)}
        if wrong:
            raise ValueError(f"{self.path.name}: not a whole {kind.__name__}: missing, unexpected or of another shape "
                             f"{some(wrong)}. Get the file again.")
        transformers.utils.logging.disable_progress_bar()
        network = kind.from_pretrained(None, config=config, state_dict=tensors, dtype="auto")
        return _computing_in_fp32(network).requires_grad_(False).eval()


def _pieces(data: bytes, is_json: bool, place, vocabulary: int) -> Callable[[str], list[int]]:
    try:
        if is_json:
            import tokenizers

            model = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            encode, count = (lambda text: model.encode(text, add_special_tokens=False).ids), model.get_vocab_size()
        else:
            import sentencepiece

            model = sentencepiece.SentencePieceProcessor(model_proto=data)
            encode, count = model.encode, model.get_piece_size()
    except Exception as error:  # both libraries raise types of their own
        raise ValueError(f"{place}: not a tokenizer that can be read ({error}). Get the file again.") from error
    if count > vocabulary:
        raise ValueError(f"{place}: this tokenizer has {count} pieces, the text encoder knows {vocabulary}: it is another model's.")
    return encode


def _computing_in_fp32(network: nn.Module) -> nn.Module:
    """Weights of half the size stay so in memory, and are widened for their product alone."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = _WideLinear
        elif isinstance(module, nn.Embedding):
            module.forward = partial(_wide_rows, module.weight, getattr(module, "scalar_embed_scale", 1.0))
        elif not any(module.children()):
            module.float()
    for name, module in network.named_modules():
        if name.endswith(".wo"):  # transformers casts what goes into T5's to its type: in fp16 that overflows
            module.float()
    return network


def _wide_rows(weight, scale: float, tokens):
    """Rows of an embedding, Gemma's times its scale, which transformers rounds to the weights' type."""
    return F.embedding(tokens, weight).float() * scale


class _WideLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def _gemma_name(key: str) -> str | None:
    key = key.removeprefix("model.")
    return key if re.match(r"(layers|norm|embed_tokens)\.", key) and "rotary_emb" not in key else None


def _t5_name(key: str) -> str | None:
    return key if re.fullmatch(r"shared\..+|encoder\.(block\.\d+|final_layer_norm|embed_tokens)\..+", key) else None

"""The tiny T5: encoder, tokenizer, and its pretraining on the attributes of the drawn clips.

The network is T5 v1.1's encoder (gated GELU, no biases, no scaling of the attention scores, positions told by a bias
that the first layer holds), with Hugging Face's key names, so the host's own text encoder loads its file. As CogVideoX
uses it there is no mask: a prompt is filled up with padding to its fixed length and padding is read like all else.

CogVideoX gives text tokens no positions, so whatever the order of words says must be in the tokens' own states: the
pretraining asks every single state, padding's too, for all attributes, and their mean as well.
"""
from __future__ import annotations

import io
import math
import random
from dataclasses import asdict, dataclass

import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from ...evaluation.drawn import clips

PAD, EOS, UNKNOWN = 0, 1, 2
LENGTH = 32  # tokens of every prompt, end and padding included


@dataclass(frozen=True)
class T5Params:
    """Fields named as in Hugging Face's T5Config."""

    vocab_size: int
    d_model: int = 96
    d_kv: int = 32
    d_ff: int = 192
    num_layers: int = 2
    num_heads: int = 3
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


class Attention(nn.Module):
    """Self-attention; `bias` (1, heads, T, T) comes from the first layer, which alone has the table for it."""

    def __init__(self, p: T5Params, has_bias: bool):
        super().__init__()
        inner = p.num_heads * p.d_kv
        self.params = p
        self.q, self.k, self.v = (nn.Linear(p.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, p.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(p.relative_attention_num_buckets, p.num_heads) if has_bias else None

    def position_bias(self, length: int):
        at = torch.arange(length, device=self.o.weight.device)
        bias = self.relative_attention_bias(bucket(at[None, :] - at[:, None], self.params))
        return bias.permute(2, 0, 1)[None]

    def forward(self, x, bias):
        q, k, v = (f(x).unflatten(-1, (self.params.num_heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(x.transpose(1, 2).flatten(2))


def bucket(distance: torch.Tensor, p: T5Params) -> torch.Tensor:
    """Row of the bias table for each distance key - query: half of the rows for either side; of a side's rows half
    are for one distance each, the rest for ranges that grow like a logarithm up to the greatest distance."""
    side = p.relative_attention_num_buckets // 2
    exact = side // 2
    far = distance.abs()
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(p.relative_attention_max_distance / exact)
    grown = (exact + (growth * (side - exact)).long()).clamp(max=side - 1)
    return torch.where(far < exact, far, grown) + torch.where(distance > 0, side, 0)


class Layer(nn.Module):
    """Norm and network of one half of a block, under the names of Hugging Face: `name` is the network's."""

    def __init__(self, p: T5Params, name: str, network: nn.Module):
        super().__init__()
        self.add_module(name, network)
        self.layer_norm = nn.RMSNorm(p.d_model, p.layer_norm_epsilon)


class DenseReluDense(nn.Module):
    def __init__(self, p: T5Params):
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(p.d_model, p.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(p.d_ff, p.d_model, bias=False)

    def forward(self, x):
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class Block(nn.Module):
    def __init__(self, p: T5Params, has_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList([Layer(p, "SelfAttention", Attention(p, has_bias)),
                                    Layer(p, "DenseReluDense", DenseReluDense(p))])

    def forward(self, x, bias):
        attend, feed = self.layer
        x = x + attend.SelfAttention(attend.layer_norm(x), bias)
        return x + feed.DenseReluDense(feed.layer_norm(x))


class T5Encoder(nn.Module):
    """tokens (B, T) int64 -> states (B, T, d_model) of the last layer after the final norm."""

    def __init__(self, params: T5Params):
        super().__init__()
        self.params = params
        self.shared = nn.Embedding(params.vocab_size, params.d_model)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList([Block(params, i == 0) for i in range(params.num_layers)])
        self.encoder.final_layer_norm = nn.RMSNorm(params.d_model, params.layer_norm_epsilon)
        for name, parameter in self.named_parameters():
            if name.endswith("SelfAttention.q.weight"):  # the scores are not divided by the root of d_kv
                nn.init.normal_(parameter, std=(params.d_model * params.d_kv) ** -0.5)
            elif parameter.dim() == 2 and name != "shared.weight":
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(self, tokens):
        x = self.shared(tokens)
        bias = self.encoder.block[0].layer[0].SelfAttention.position_bias(tokens.shape[1])
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)


# --- tokenizer ---


def train_tokenizer(vocabulary: int = 512) -> bytes:
    """A sentencepiece BPE model of the grammar and its paraphrases, as its serialised bytes.

    No normalisation, which alone would weigh 240 kB; what no piece covers, falls back to bytes. Deterministic."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    scenes = torch.cat([clips.sample_scenes(3000, generator), clips.sample_scenes(600, generator, held_out=True)])
    corpus = [clips.any_prompt(scene, rng) for scene in scenes.tolist()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="bpe", vocab_size=vocabulary,
        hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        pad_id=PAD, eos_id=EOS, unk_id=UNKNOWN, bos_id=-1, num_threads=1, minloglevel=2)
    return model.getvalue()


class Tokenizer:
    """Prompts -> token ids (B, 32): the words, the end, padding. What is too long, is cut before the end."""

    def __init__(self, model: bytes):
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self):
        return self.pieces.get_piece_size()

    def __call__(self, prompts: list[str]) -> torch.Tensor:
        tokens = torch.full((len(prompts), LENGTH), PAD)
        for row, prompt in enumerate(prompts):
            ids = [*self.pieces.encode(prompt)[: LENGTH - 1], EOS]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens


def encode_prompts(model: T5Encoder, tokenizer: Tokenizer, prompts: list[str]) -> torch.Tensor:
    """States (B, 32, d_model), padding's as they are."""
    return model(tokenizer(prompts).to(model.shared.weight.device))


# --- pretraining ---


class AttributeHeads(nn.Module):
    """Reads the four attributes linearly from each state, and from the mean of all."""

    def __init__(self, width: int):
        super().__init__()
        self.each, self.mean = nn.Linear(width, sum(clips.COUNTS)), nn.Linear(width, sum(clips.COUNTS))

    def forward(self, states):
        """-> four logits (B, 32, count) of the states, four (B, count) of their mean."""
        return self.each(states).split(clips.COUNTS, dim=-1), self.mean(states.mean(dim=1)).split(clips.COUNTS, dim=-1)


def text_batch(count: int, seed: int, held_out: bool = False) -> tuple[list[str], torch.Tensor]:
    """Prompts and their scenes (count, 4)."""
    rng = random.Random(seed)
    scenes = clips.sample_scenes(count, torch.Generator().manual_seed(seed), held_out)
    return [clips.any_prompt(scene, rng) for scene in scenes.tolist()], scenes


class TextTraining(nn.Module):
    """Tokenizer, network and heads, with the loss of one step."""

    def __init__(self):
        super().__init__()
        self.tokenizer_model = train_tokenizer()
        self.tokenizer = Tokenizer(self.tokenizer_model)
        self.model = T5Encoder(T5Params(vocab_size=len(self.tokenizer)))
        self.heads = AttributeHeads(self.model.params.d_model)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Cross-entropy over the four attributes of one random batch, of the single states and of their mean."""
        prompts, scenes = text_batch(32, step)
        states = encode_prompts(self.model, self.tokenizer, prompts)
        each, mean = self.heads(states)
        targets = scenes.to(states.device)
        loss = sum(F.cross_entropy(logits, targets[:, i]) for i, logits in enumerate(mean))
        for i, logits in enumerate(each):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), targets[:, i].repeat_interleave(LENGTH))
        return loss / 2


@torch.no_grad()
def text_accuracy(training: TextTraining, count: int = 256) -> dict[str, float]:
    """Per attribute, the share of held-out prompts' states that tell it, over the states and the prompts."""
    prompts, scenes = text_batch(count, 10_000_019, held_out=True)
    each, _ = training.heads(encode_prompts(training.model, training.tokenizer, prompts))
    return {name: (each[i].argmax(dim=-1).cpu() == scenes[:, i, None]).float().mean().item()
            for i, name in enumerate(clips.ATTRIBUTES)}


def to_file(model: T5Encoder, tokenizer: bytes) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors under Hugging Face's names in fp16, with the tokenizer as `spiece_model`; config)."""
    tensors = {k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    config = {"architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu",
              "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "eos_token_id": EOS, "pad_token_id": PAD,
              "max_text_seq_length": LENGTH, **asdict(model.params)}
    return tensors, config


def from_file(tensors: dict[str, torch.Tensor], config: dict) -> tuple[T5Encoder, Tokenizer]:
    """The inverse of to_file, in fp32."""
    model = T5Encoder(T5Params(**{k: config[k] for k in T5Params.__dataclass_fields__}))
    model.load_state_dict({k: v.float() for k, v in tensors.items() if k != "spiece_model"})
    return model.eval(), Tokenizer(tensors["spiece_model"].numpy().tobytes())

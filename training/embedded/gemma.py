"""The tiny Gemma-2: network, tokenizer, and its pretraining on the attributes of the drawn scenes.

The network is Gemma-2 as ComfyUI runs it (head dimension 256, no attention soft-cap, no sliding window at these lengths),
with Hugging Face's key names, so the host's own text encoder loads its file. It is trained before the transformer and
then frozen: encoders trained jointly never learned which colour belongs to what.
"""
from __future__ import annotations

import copy
import io
import math
import random
from dataclasses import asdict, dataclass

import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from ...evaluation.drawn import groups, shapes
from ...sana_core.text import INSTRUCTION

PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
STAY = 30.0  # weight of how far, of their length squared, states move that shall stay


@dataclass(frozen=True)
class GemmaParams:
    """Fields named as in Hugging Face's Gemma2Config; head_dim is fixed by ComfyUI's class."""

    vocab_size: int
    hidden_size: int = 96
    intermediate_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    num_key_value_heads: int = 1
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


class RMSNorm(nn.Module):
    """Root mean square norm whose stored weight is the distance from 1."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], 1.0 + self.weight, self.eps)


def rotary(length: int, head_dim: int, theta: float, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, head_dim), the frequencies repeated in both halves."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x, cosines, sines):
    """x (B, heads, T, head_dim) turned by its position."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class Attention(nn.Module):
    def __init__(self, p: GemmaParams):
        super().__init__()
        self.head_dim = p.head_dim
        self.q_proj = nn.Linear(p.hidden_size, p.num_attention_heads * p.head_dim, bias=False)
        self.k_proj = nn.Linear(p.hidden_size, p.num_key_value_heads * p.head_dim, bias=False)
        self.v_proj = nn.Linear(p.hidden_size, p.num_key_value_heads * p.head_dim, bias=False)
        self.o_proj = nn.Linear(p.num_attention_heads * p.head_dim, p.hidden_size, bias=False)

    def forward(self, x, turn):
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        # Causal, and padding stands on the right: no real token ever sees a padded one, so no other mask is needed.
        x = F.scaled_dot_product_attention(rotate(q, *turn), rotate(k, *turn), v, is_causal=True, enable_gqa=True)
        return self.o_proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, p: GemmaParams):
        super().__init__()
        self.gate_proj = nn.Linear(p.hidden_size, p.intermediate_size, bias=False)
        self.up_proj = nn.Linear(p.hidden_size, p.intermediate_size, bias=False)
        self.down_proj = nn.Linear(p.intermediate_size, p.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, p: GemmaParams):
        super().__init__()
        self.self_attn, self.mlp = Attention(p), MLP(p)
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            setattr(self, name, RMSNorm(p.hidden_size, p.rms_norm_eps))

    def forward(self, x, turn):
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), turn))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma2(nn.Module):
    """tokens (B, T) int64, padded on the right -> states (B, T, hidden_size) of the last layer after the final norm."""

    def __init__(self, params: GemmaParams):
        super().__init__()
        self.params = params
        self.embed_tokens = nn.Embedding(params.vocab_size, params.hidden_size)
        self.layers = nn.ModuleList([Layer(params) for _ in range(params.num_hidden_layers)])
        self.norm = RMSNorm(params.hidden_size, params.rms_norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=params.hidden_size**-0.5)

    def forward(self, tokens):
        x = self.embed_tokens(tokens) * math.sqrt(self.params.hidden_size)
        turn = rotary(tokens.shape[1], self.params.head_dim, self.params.rope_theta, tokens.device)
        for layer in self.layers:
            x = layer(x, turn)
        return self.norm(x)


# --- tokenizer ---


def train_tokenizer(vocabulary: int = 768) -> bytes:
    """A sentencepiece BPE model of the grammar, its paraphrases and the Sana instruction, as its serialised bytes.

    Text is taken as it is, like Gemma's: no normalisation (which alone would weigh 240 kB), no space put in front, spaces
    kept; what no piece covers, falls back to bytes. Deterministic.
    """
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    scenes = torch.cat([shapes.sample_scenes(3000, generator), shapes.sample_scenes(600, generator, held_out=True)])
    corpus = [shapes.any_prompt(scene, rng)[0] for scene in scenes.tolist()]
    corpus += [" " + line for line in corpus[:1000]]  # after "User Prompt:" the first word has a space in front
    corpus += INSTRUCTION.split("\n") * 30
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="bpe", vocab_size=vocabulary,
        hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, pad_id=PAD, eos_id=EOS, bos_id=BOS, unk_id=UNKNOWN,
        num_threads=1, minloglevel=2)
    return model.getvalue()


class Tokenizer:
    """Prompt -> the token ids that Gemma sees and which of them Sana keeps."""

    def __init__(self, model: bytes):
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.instruction_length = 1 + len(self.pieces.encode(INSTRUCTION))

    def __len__(self):
        return self.pieces.get_piece_size()

    def encode(self, prompt: str, instruction: bool) -> tuple[list[int], list[int]]:
        """(ids with BOS in front, indices of the kept ones). With the instruction in front, the kept tokens are BOS and
        those from the last of the instruction's on, as that one fuses with the prompt's first word."""
        if not instruction:
            ids = [BOS, *self.pieces.encode(prompt)]
            return ids, list(range(len(ids)))
        ids = [BOS, *self.pieces.encode(INSTRUCTION + prompt)]
        return ids, [0, *range(self.instruction_length - 1, len(ids))]


def encode_prompts(model: Gemma2, tokenizer: Tokenizer, prompts: list[str], instruction: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept states (B, T, width) and mask (B, T), 1 for a token; T is the longest prompt's, padding is zero."""
    device = model.norm.weight.device
    encoded = [tokenizer.encode(p, instruction) for p in prompts]
    tokens = torch.full((len(prompts), max(len(ids) for ids, _ in encoded)), PAD)
    for row, (ids, _) in enumerate(encoded):
        tokens[row, : len(ids)] = torch.tensor(ids)
    states = model(tokens.to(device))
    kept = torch.zeros(len(prompts), max(len(keep) for _, keep in encoded), dtype=torch.long)
    mask = torch.zeros(kept.shape)
    for row, (_, keep) in enumerate(encoded):
        kept[row, : len(keep)], mask[row, : len(keep)] = torch.tensor(keep), 1.0
    kept, mask = kept.to(device), mask.to(device)
    states = states.gather(1, kept[..., None].expand(-1, -1, states.shape[-1]))
    return states * mask[..., None], mask


# --- pretraining ---


class Heads(nn.Module):
    """Tells attributes of so many values each from the last kept token, and from the mean of all."""

    def __init__(self, width: int, counts):
        super().__init__()
        self.counts = list(counts)
        self.last, self.mean = nn.Linear(width, sum(self.counts)), nn.Linear(width, sum(self.counts))

    def forward(self, states, mask):
        """-> two lists of logits (B, count)."""
        count = mask.sum(dim=1)
        last = states[torch.arange(len(states), device=states.device), count.long() - 1]
        mean = states.sum(dim=1) / count[:, None]
        return self.last(last).split(self.counts, dim=1), self.mean(mean).split(self.counts, dim=1)

    def loss(self, states, mask, targets) -> torch.Tensor:
        """Cross-entropy of both sides over all attributes; targets (B, attributes)."""
        targets = targets.to(states.device)
        return sum(F.cross_entropy(logits, targets[:, i]) for side in self(states, mask) for i, logits in enumerate(side)) / 2


# Of a single shape; size and place may be unnamed, which is a value of its own.
SINGLE = (*shapes.COUNTS[:3], shapes.COUNTS[3] + 1, shapes.COUNTS[4] + 1)


def text_batch(count: int, seed: int, held_out: bool = False) -> tuple[list[str], torch.Tensor]:
    """Prompts and their (count, 5) targets, where the class behind the last one says 'not named'."""
    rng = random.Random(seed)
    scenes = shapes.sample_scenes(count, torch.Generator().manual_seed(seed), held_out)
    prompts, targets = [], scenes.clone()
    for row, scene in enumerate(scenes.tolist()):
        text, (has_size, has_place) = shapes.any_prompt(scene, rng)
        prompts.append(text)
        if not has_size:
            targets[row, shapes.SIZE] = shapes.COUNTS[shapes.SIZE]
        if not has_place:
            targets[row, shapes.PLACE] = shapes.COUNTS[shapes.PLACE]
    return prompts, targets


def group_batch(count: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Prompts of several shapes and their (count, 7) targets: what stands where, whichever of two is named first."""
    rng = random.Random(seed)
    targets = groups.sample(count, torch.Generator().manual_seed(seed))
    return [groups.any_prompt(group, rng) for group in targets.tolist()], targets


class TextTraining(nn.Module):
    """Tokenizer, network and heads, with the loss of one step.

    from_file: (network, tokenizer) of a written file that goes on. Others were trained on its states for prompts of a single
    shape, which then stay where they are.
    """

    def __init__(self, from_file: tuple[Gemma2, Tokenizer] | None = None):
        super().__init__()
        self.before = None
        if from_file is None:
            self.tokenizer_model = train_tokenizer()
            self.tokenizer = Tokenizer(self.tokenizer_model)
            self.model = Gemma2(GemmaParams(vocab_size=len(self.tokenizer)))
        else:
            self.before, self.tokenizer = from_file
            self.before.requires_grad_(False)
            self.tokenizer_model = self.tokenizer.pieces.serialized_model_proto()
            self.model = copy.deepcopy(self.before).requires_grad_(True)
        width = self.model.params.hidden_size
        self.heads, self.group_heads = Heads(width, SINGLE), Heads(width, groups.COUNTS)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Of a random batch of single shapes and one of several; every fourth has the instruction in front."""
        instruction = step % 4 == 0
        count = 16 if instruction else 64
        prompts, targets = text_batch(count, step)
        states, mask = encode_prompts(self.model, self.tokenizer, prompts, instruction)
        loss = self.heads.loss(states, mask, targets)
        if self.before is not None:
            kept, _ = encode_prompts(self.before, self.tokenizer, prompts, instruction)
            loss = loss + STAY * (states - kept).square().sum() / (kept.square().sum())
        prompts, targets = group_batch(count, step)
        return loss + self.group_heads.loss(*encode_prompts(self.model, self.tokenizer, prompts, instruction), targets)


@torch.no_grad()
def text_accuracy(model: Gemma2, heads: Heads, tokenizer: Tokenizer, instruction: bool, count: int = 256) -> dict[str, float]:
    """Per attribute, the share of held-out prompts whose last token tells it."""
    prompts, targets = text_batch(count, 10_000_019, held_out=True)
    logits, _ = heads(*encode_prompts(model, tokenizer, prompts, instruction))
    return {name: (logits[i].argmax(dim=1).cpu() == targets[:, i]).float().mean().item() for i, name in enumerate(shapes.ATTRIBUTES)}


def to_file(model: Gemma2, tokenizer: bytes) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors under Hugging Face's names in fp16, with the tokenizer as `spiece_model`; config)."""
    tensors = {f"model.{k}": v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    config = {"architectures": ["Gemma2Model"], "model_type": "gemma2", "attn_logit_softcapping": None,
              "final_logit_softcapping": None, "query_pre_attn_scalar": model.params.head_dim,
              "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
              **asdict(model.params)}
    return tensors, config


def from_file(tensors: dict[str, torch.Tensor], config: dict) -> tuple[Gemma2, Tokenizer]:
    """The inverse of to_file, in fp32."""
    model = Gemma2(GemmaParams(**{k: config[k] for k in GemmaParams.__dataclass_fields__}))
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in tensors.items() if k != "spiece_model"})
    return model.eval(), Tokenizer(tensors["spiece_model"].numpy().tobytes())

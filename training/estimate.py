"""What a run would do and what it takes, without training: steps, buckets, tokens, memory, and the first batch as a picture.

Memory is counted on PyTorch's meta device, where a step runs without numbers: what a forward pass keeps for the backward one is
listed tensor by tensor.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.overrides import TorchFunctionMode

from ..cogvideo_core.autoencoder import CogVideoVAE
from ..cogvideo_core.memory import encode_bytes
from ..sana_core.autoencoder import AutoencoderDC
from ..sana_core.memory import picture_bytes
from ..sana_core.text import MAX_TOKENS
from . import recipe, samples, session, validation
from .data import media
from .data.batches import Batches
from .models import Models
from .parallel import calls

STATES = {"adamw": 8, "adamw8bit": 2.1, "came": 4.2, "prodigy": 16, "muon": 4}  # bytes a trained number


@dataclass(frozen=True)
class Memory:
    """Bytes. weights: of the network as it is kept, frozen or not; trained: of adapters, which are beside it; gradients, optimizer,
    average: of what is trained; activations: what the largest batch's forward pass keeps; working: what a block takes for a moment
    on top."""

    weights: int
    trained: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    working: int

    @property
    def peak(self) -> int:
        """Gradients grow while activations are let go of."""
        return self.weights + self.trained + self.optimizer + self.average + self.working + max(self.activations, self.gradients)


def memory(config, models: Models, shape: Sequence[int], batch_size: int, text: int) -> Memory:
    """What training takes. shape: of a latent, (C, h, w) or (C, f, h, w). text: tokens of the captions."""
    made = recipe.build(config, models, meta=True)
    beside = made.trained is not made.network
    own = {id(p) for p in made.trained.parameters()} if beside else set()
    weights = sum(t.numel() * t.element_size() for t in [*made.network.parameters(), *made.network.buffers()] if id(t) not in own)
    count = sum(p.numel() for _, p in made.named)
    half = 1.0 if config.model.dtype == "fp32" else 0.5
    kept, largest = _kept(made, config, shape, batch_size, text)
    return Memory(weights, 4 * count if beside else 0, 4 * count, round(STATES[config.train.optimizer] * count),
                  4 * count if config.train.ema else 0, round(kept * half), round(largest * half))


def _kept(made, config, shape, batch_size, text) -> tuple[int, int]:
    """(bytes that a forward pass keeps for the backward one in fp32, bytes that are alive for a moment beside them)."""
    loss, sizes = recipe.Loss(made, 1.0).float().train(), _Sizes(made)
    loss.objective = dataclasses.replace(made.objective, caption_dropout=0.0)  # which looks at the empty prompt's numbers
    batch = _batch(made, config, shape, batch_size, text)
    hooks = torch.autograd.graph.saved_tensors_hooks(sizes.keep, lambda packed: packed)
    with hooks, sizes.by_block(), _FusedAttention():
        loss(batch, torch.Generator().manual_seed(0))
    token_bytes = max(sizes.inputs, default=0)
    if not config.train.gradient_checkpointing:
        return sizes.total, 3 * token_bytes
    blocks = sum(sizes.blocks)
    return sizes.total - blocks + sum(sizes.inputs), max(sizes.blocks, default=0) + 3 * token_bytes


class _Sizes:
    """Storages that are kept, counted once, in all and by block; inputs: bytes of what enters each block."""

    def __init__(self, made):
        self.made, self.seen, self.total, self.blocks, self.inputs = made, {}, 0, [], []
        self.weights = {p.untyped_storage()._cdata for p in [*made.network.parameters(), *made.trained.parameters()]}
        self.weights |= {b.untyped_storage()._cdata for b in made.network.buffers()}

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.seen:
            self.seen[storage._cdata] = storage  # alive, or its number would be given again
            self.total += storage.nbytes()
        return tensor

    def by_block(self):
        return _Watched(self)


class _Watched:
    def __init__(self, sizes):
        self.sizes = sizes

    def __enter__(self):
        sizes = self.sizes

        def watched(call, x, *more, **named):
            before = sizes.total
            sizes.inputs.append(x.numel() * 4)
            out = call(x, *more, **named)
            sizes.blocks.append(sizes.total - before)
            return out
        for block in sizes.made.blocks:
            for name in calls(block):
                setattr(block, name, partial(watched, getattr(block, name)))

    def __exit__(self, *error):
        for block in self.sizes.made.blocks:
            for name in calls(block):
                delattr(block, name)


class _FusedAttention(TorchFunctionMode):
    """Softmax attention as devices compute it. The meta device would make, and keep, the products of all tokens with all."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _Attended.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out


def _batch(made, config, shape, batch_size, text) -> dict:
    params = made.params
    of_t5 = config.model.family == "cogvideox"
    width = params.text_embed_dim if of_t5 else params.caption_channels
    batch = {"latents": torch.empty(batch_size, *shape, device="meta"),
             "states": torch.empty(batch_size, text, width, device="meta"),
             "mask": torch.ones(batch_size, text, dtype=torch.long, device="meta"),
             "null_states": torch.empty(1, text if of_t5 else max(text, MAX_TOKENS), width, device="meta"),
             "null_mask": torch.ones(1, text, dtype=torch.long, device="meta")}
    if config.train.kind == "controlnet":
        batch["control"] = torch.empty(batch_size, *shape, device="meta")
    if config.model.conditioning == "image":
        batch["image"] = torch.empty(batch_size, shape[0], 1, *shape[2:], device="meta")
    return batch


def latent_shape(bucket, model, params) -> tuple[int, ...]:
    """model: the config's section."""
    return params.out_channels, *model.latent_size.of(*bucket)


def tokens(shape: Sequence[int], params) -> int:
    """Of the picture or clip in the network."""
    patches = math.prod(-(-side // params.patch_size) for side in shape[-2:])
    return patches if len(shape) == 3 else patches * -(-shape[1] // (getattr(params, "patch_size_t", None) or 1))


def caching(models: Models, buckets, device: str) -> dict[str, int]:
    """{model: bytes} of what is in memory, one after the other, before training begins."""
    text = sum(file.stat().st_size for file in models.files("text_encoder"))
    network = models.autoencoder()
    weights = sum(p.numel() * 4 for p in network.parameters())
    if isinstance(network, AutoencoderDC):
        channels = network.params.encoder_block_out_channels[0]
        most = max(picture_bytes(channels, b.height * b.width, 4, device == "cpu") for b in buckets)
    elif isinstance(network, CogVideoVAE):
        most = max(encode_bytes(network.params, (1, 3, *b), 4) for b in buckets)
    else:
        return {"text encoder": text, "autoencoder's weights": weights}  # what diffusers' take to work is not counted
    return {"text encoder": text, "autoencoder": weights + most}


# --- --check ---


def check(loaded, log=print) -> None:
    """Print what a run would do; write the first batch's pictures into its folder. Nothing is encoded or trained."""
    config, folder = loaded.config, session.folder_of(loaded.config)
    models = Models(config.model)
    log(f"{config.model.transformer}: {models.identity.variant}; {models.identity.evidence}")
    for warning in models.identity.warnings:
        log(f"warning: {warning}")
    train, held_out, _ = samples.gather(config, log)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    plan = Batches([s.placed.bucket for s in train], [s.row.repeats for s in train], config.data.batch_size, config.train.seed)
    window = config.train.accumulation * processes
    log(samples.summary(train, held_out))
    log(f"\n{config.train.steps} steps of {window} batches of {config.data.batch_size}: {config.train.steps * window} batches, "
        f"{config.train.steps * window / plan.per_epoch:.1f} times through the {plan.per_epoch} of the data")
    params = models.params
    text = params.max_text_seq_length if config.model.family == "cogvideox" else MAX_TOKENS
    log(f"\nbucket (px){'':<12}samples  latent{'':<14}tokens  + text")
    largest, most = None, 0
    for bucket, count in samples.table(train):
        shape = latent_shape(bucket, config.model, params)
        number = tokens(shape, params)
        if number > most:
            largest, most = shape, number
        log(f"{str(bucket):<23}{count:>7}  {' x '.join(map(str, shape)):<20}{number:>6}  <= {text}")
    _say_memory(config, models, largest, text, samples.table(train), log)
    path = first_batch(config, train, plan, folder)
    log(f"\nthe first batch as it is trained on: {path}")


def _say_memory(config, models, shape, text, table, log) -> None:
    if config.train.kind == "sprint":
        log("\nmemory: not counted for kind sprint; it holds student, teacher and discriminator")
        return
    found = memory(config, models, shape, config.data.batch_size, text)
    log("\nmemory for training, on the device")
    lines = [("network", found.weights, "model.dtype, model.quantize"), ("adapters or copies, fp32", found.trained, "lora.rank"),
             ("optimiser", found.optimizer, "train.optimizer"), ("average", found.average, "train.ema"),
             ("gradients", found.gradients, "what is trained"),
             ("activations", found.activations, "data.batch_size, resolution, train.gradient_checkpointing"),
             ("in work", found.working, "resolution")]
    for name, size, knob in lines:
        if size:
            log(f"  {name:<26}{_gib(size):>10}   {knob}")
    log(f"  {'at most at once':<26}{_gib(found.peak):>10}   and what libraries take for themselves, on a GPU about 1 GiB")
    before = caching(models, [bucket for bucket, _ in table], "cuda" if torch.cuda.is_available() else "cpu")
    log("before training, one after the other: " + ", ".join(f"{name} {_gib(size)}" for name, size in before.items()))


def first_batch(config, train, plan: Batches, folder):
    """first_batch.png: the pictures, or first, middle and last frames, of batch 0 as the autoencoder will see them."""
    data, rows, titles = config.data, [], []
    for i in plan.batch(0):
        s = train[i]
        pixels = media.load(s.row, s.placed, s.folder, fps=data.fps, window=data.window, clip=s.clip, pad_last=data.pad_last)
        rows.append([validation.frame(pixels)])
        titles.append(f"{s.row.file}: {next(iter(samples.captions_of(s.row)), '(no caption)')}")
    folder.mkdir(parents=True, exist_ok=True)
    validation.sheet(rows, titles, folder / "first_batch.png")
    return folder / "first_batch.png"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"

"""One step of LoRA training, ours beside what diffusers' training script does: the same weights, adapters, batch and noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..training import adapters, optimizers
from ..training.objectives.sana import SanaFlow
from . import sana, sides
from .harness import Case

RANK, RATE, CLIP = 16, 1e-4, 1.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def step(size, pixels, batch=2, prompt=sana.PROMPT, device="cpu"):
    """Noise, forward and backward pass, clipping and AdamW, in fp32, without checkpointing -> Case, whose output is the loss.

    Each call is a further step on the same batch: both sides go the same way. Without diffusers the baseline is our own.
    """
    params = sana.SIZES[size]
    ours, baseline = sana.transformers(params, device, torch.float32)
    added = adapters.add(ours, RANK, RANK, ["attention+out"], generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    side = pixels // 32
    mask = torch.zeros(batch, sana.TOKENS, device=device)
    mask[:, :prompt] = 1
    given = {"latents": torch.randn(batch, params.in_channels, side, side, device=device), "mask": mask,
             "states": torch.randn(batch, sana.TOKENS, params.caption_channels, device=device)}
    if sides.DIFFUSERS:
        theirs = with_peft(baseline, added)
    else:
        theirs = adapters.add(baseline, RANK, RANK, ["attention+out"], generator=torch.Generator().manual_seed(0)).parameters()
    flow = SanaFlow(params.flow_shift, whole_timesteps=False, caption_dropout=0.0, multiplier=params.timestep_multiplier)

    def loss_of_diffusers(generator):
        """As examples/dreambooth/train_dreambooth_lora_sana.py computes it, but for the timesteps, which are whole in both."""
        latents = given["latents"]
        sigma = flow.levels(batch, generator)
        torch.rand(batch, generator=generator)  # where ours draws which captions to drop
        noise = torch.randn(latents.shape, generator=generator).to(device)
        wide = sigma.to(device)[:, None, None, None]
        v = baseline((1 - wide) * latents + wide * noise, encoder_hidden_states=given["states"], encoder_attention_mask=mask,
                     timestep=torch.floor(1000 * sigma + 1e-3), return_dict=False)[0]
        return F.mse_loss(v, noise - latents)

    def trained(loss, parameters):
        optimizer = optimizers.make("adamw", [("", p) for p in parameters], RATE)[0]
        done = 0

        def call():
            nonlocal done
            with torch.inference_mode(False), torch.enable_grad():
                found = loss(torch.Generator().manual_seed(done))
                found.backward()
                torch.nn.utils.clip_grad_norm_(parameters, CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done += 1
            return found.detach()
        return call

    call_ours = trained(lambda generator: flow.losses(ours, given, generator).mean(), list(added.parameters()))
    if sides.DIFFUSERS:
        call_theirs = trained(loss_of_diffusers, list(theirs))
    else:
        call_theirs = trained(lambda generator: flow.losses(baseline, given, generator).mean(), list(theirs))
    return Case(f"Sana {size} LoRA step, {pixels} px, batch {batch}", call_ours, call_theirs, [()], sides.LIMITS[torch.float32])


def with_peft(network, added):
    """PEFT's adapters on diffusers' network, with the numbers of ours -> their parameters."""
    from peft import LoraConfig

    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    named = dict(network.named_parameters())
    with torch.no_grad():
        for name, low in zip(added.names, added.layers):
            named[f"{name}.lora_A.default.weight"].copy_(low.A)
            named[f"{name}.lora_B.default.weight"].copy_(low.B)
    return [p for name, p in named.items() if ".lora_" in name]

"""How Sana reads a prompt: the instruction put before it, 300 tokens, and which of them the picture sees."""

from __future__ import annotations

import logging
from typing import Callable

import torch

MAX_TOKENS = 300  # what the transformer was trained with
PAD = 0           # Gemma's padding token

# NVlabs' wording, double quotes included: another wording is another prompt. Its last line ends in a blank.
INSTRUCTION = "\n".join([
    'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for '
    "image generation. Evaluate the level of detail in the user prompt:",
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
    "relationships to create vivid and concrete scenes.",
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.",
    "Here are examples of how to transform or refine prompts:",
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
    "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
    "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
    "skyscrapers.",
    "Please generate only the enhanced description for the prompt below and avoid including any additional "
    "commentary or evaluations:",
    "User Prompt: ",
])

# What diffusers' SANA-Video pipelines put there. The models themselves were trained behind INSTRUCTION, as their released
# configurations have it.
VIDEO_INSTRUCTION = "\n".join([
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for video "
    "generation. Evaluate the level of detail in the user prompt:",
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, motion, and temporal "
    "relationships to create vivid and dynamic scenes.",
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.",
    "Here are examples of how to transform or refine prompts:",
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat slowly settling into a curled position, "
    "peacefully falling asleep on a warm sunny windowsill, with gentle sunlight filtering through surrounding pots of "
    "blooming red flowers.",
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps "
    "gradually lighting up, a diverse crowd of people in colorful clothing walking past, and a double-decker bus smoothly "
    "passing by towering glass skyscrapers.",
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary or "
    "evaluations:",
    "User Prompt: ",
])
VIDEO = "video"
INSTRUCTIONS = {False: "", True: INSTRUCTION, VIDEO: VIDEO_INSTRUCTION}


def with_motion_score(text: str, score: int) -> str:
    """A prompt for SANA-Video that says how much is to move: 10 to 30 as a rule, 0 says nothing."""
    return f"{text.strip()} motion score: {score}." if score else text


def tokens_of(tokenize: Callable[[str], list[int]], text: str, instruction: bool | str) -> list[int]:
    """Prompt -> token ids, padded on the right to a length that tells what to keep of their states.

    tokenize(text) returns ids that begin with BOS. instruction: a key of INSTRUCTIONS. With one (n tokens, BOS counted) the length is
    n + 298: two fewer than n + 300, because BOS is shared and the instruction's last token, a blank, fuses with the
    first word. Without it the length is 300. Of an empty prompt the instruction leaves two tokens, BOS and that blank. Longer
    prompts are cut, and the log says so.
    Source: facts/sana.md 2.1; NVlabs strips the text and does not lower its case.
    """
    text = text.strip()
    length = MAX_TOKENS
    if instruction := INSTRUCTIONS[instruction]:
        length += len(tokenize(instruction)) - 2
        text = instruction + text
    ids = tokenize(text)
    if len(ids) > length:
        logging.info("Sana reads %d tokens: the last %d of this prompt are cut off.", MAX_TOKENS, len(ids) - length)
    return ids[:length] + [PAD] * (length - len(ids))


def kept_states(states: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States of the real tokens (B, n, C) of a prompt that is `length` long with its padding
    -> (states (B, 300, C), mask (B, 300), 1 for a token).

    Kept are BOS and the last 299 of `length`, so nothing of the instruction but BOS. The network is causal and pads
    on the right: states computed without the padding are the same. Padding is zeros here, and masked.
    """
    padded = torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
    mask = torch.zeros(padded.shape[:2], dtype=torch.long, device=states.device)
    mask[:, :states.shape[1]] = 1
    first = length - (MAX_TOKENS - 1)
    return (torch.cat([padded[:, :1], padded[:, first:]], dim=1),
            torch.cat([mask[:, :1], mask[:, first:]], dim=1))


def token_mask(context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mask (B, T), 1 for a token, of context (B, T, C), whatever nodes did to the states since they were encoded.

    Padding is zeros (kept_states): where some are left, all that is not zero is text, also what was added to a shorter
    prompt. Where none are left, as with another encoder, `mask` (B, T' <= T) decides, and what goes beyond it is text.
    """
    used = (context != 0).any(-1).long()
    if mask is None or not used.all():
        return used
    return torch.cat([mask.to(used).expand(len(used), -1), used[:, mask.shape[1]:]], dim=1)

"""Prompts written out by the language model that is loaded anyway: Sana's Gemma-2, or another CLIP that can write."""

from __future__ import annotations

import logging

from .compat import check_generates

_ALONE = ("Write one paragraph of plain English and no list. Answer with the paragraph alone: no title, no quotation marks, "
          "no remark about it.\n\n")
# What each family's makers trained on, in our words: Sana on pictures told in detail, CogVideoX on long captions of one
# shot.
TEMPLATES = {
    "Sana picture": (
        "Below is a short description of a picture. Rewrite it so that a painter who cannot ask back knows what to paint. "
        "Keep everything that it says, and leave words in quotation marks as they are. Add what it leaves open: colours, "
        "shapes, sizes, materials, light, and where things are in the picture. Where it is detailed already, change "
        "little. At most 100 words. "
        + _ALONE),
    "CogVideoX video": (
        "Below is a short description of a video. Rewrite it as a description of one shot of about six seconds. Keep "
        "everything that it says. Add what it leaves open: how people and things look, where they are, the light, what "
        "moves and how from the beginning to the end, and whether the camera moves or stands still. Describe what is seen, "
        "in the present tense, without cuts and without sounds. Where it is detailed already, change little. About "
        "100 words, at most 150. " + _ALONE),
}
# Beside the temperature, how a language model picks its next word; the stock Generate Text begins with the same values.
SAMPLING = {"top_k": 64, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}


def enhance(clip, prompt: str, template: str, seed: int, max_length: int = 256, temperature: float = 0.7) -> str:
    """A longer prompt, in one line. template: a name of TEMPLATES. max_length: in tokens. temperature: 0 takes the
    likeliest word each time, whatever the seed.

    The prompt itself where the model wrote nothing, which the log tells. Raises ValueError for an empty prompt, a template
    that is not there, a CLIP that cannot write, and a host that has no way to.
    """
    if template not in TEMPLATES:
        raise ValueError(f"template is {template!r}: choose one of {', '.join(TEMPLATES)}.")
    if not prompt.strip():
        raise ValueError("The prompt is empty, and Enhance Prompt only writes out what is there. Write a few words into it.")
    check_generates(clip)
    tokens = clip.tokenize(f"{TEMPLATES[template]}Description: {prompt.strip()}", skip_template=False, min_length=1)
    written = clip.generate(tokens, do_sample=temperature > 0.0, max_length=max_length, temperature=temperature, seed=seed,
                            **SAMPLING)
    text = " ".join(clip.decode(written).split())
    if not text:
        logging.warning("Enhance Prompt: the language model wrote nothing; the prompt goes on as it was.")
    return text or prompt

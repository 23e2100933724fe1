"""The best of several pictures or clips of one prompt, by the judge of the embedded models or by a CLIP: more drawing for a better
result."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as mm
import folder_paths
import torch

from ..evaluation import clip as clips
from ..evaluation.drawn import obedience, words

JUDGE, CLIP = "judge of the embedded models", "CLIP"
VERIFIERS = (JUDGE, CLIP)
NO_FOLDER = "none"


def clip_folders() -> list[str]:
    """"none" and the folders in models/clip_vision that are a CLIP of pictures and texts both, as transformers keeps one."""
    return [NO_FOLDER, *sorted(_folders())]


def best_of(images: torch.Tensor, prompt: str, verifier: str, clip_folder: str = NO_FOLDER, keep: int = 1, frames: int = 1):
    """(the best `keep` of images, best first; the scores as text, a line a candidate; the number of the best, from 0).

    images: an IMAGE (N * frames, H, W, 3) in [0, 1], candidate after candidate: pictures with `frames` 1, else clips. A CLIP's
    score of a clip is the mean of its frames'. Of equal scores the first wins. Raises ValueError for a prompt that the judge
    cannot read or that asks for no motion of clips or for one of pictures, a CLIP that is not there, pictures that are not
    finite, images that are no whole clips, and a `keep` beyond N.
    """
    if len(images) % frames:
        raise ValueError(f"frames is {frames}, and {len(images)} frames came, which are no whole clips: give frames the length of "
                         "one clip, or 1 for pictures.")
    count, what = len(images) // frames, "pictures" if frames == 1 else "clips"
    if not 1 <= keep <= count:
        raise ValueError(f"keep is {keep}, and there are {count} {what} to choose from: choose 1 to {count}, "
                         "or draw more at once (batch_size of the empty latent).")
    if not prompt.strip():
        raise ValueError("The prompt is empty, so no picture suits it better than another. Give Best of N the prompt that "
                         "was drawn.")
    if not torch.isfinite(images).all():
        raise ValueError("A picture holds values that are not finite (NaN): it was broken before Best of N.")
    pictures = images[..., :3].float().cpu().numpy()
    clips_ = pictures.reshape(count, frames, *pictures.shape[1:])
    scores = (_judged(clips_, prompt) if verifier == JUDGE
              else _by_clip(pictures, prompt, clip_folder).reshape(count, frames).mean(1).tolist())
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    lines = "\n".join(f"{i}: {score:.4f}{' kept' if i in order[:keep] else ''}" for i, score in enumerate(scores))
    return images.unflatten(0, (count, frames))[order[:keep]].flatten(0, 1), lines, order[0]


def _judged(clips_, prompt):
    wanted = words.read(prompt)
    if wanted.direction and clips_.shape[1] == 1:
        raise ValueError("The prompt asks for a motion, and Best of N judges pictures one by one. Give frames the length of a "
                         "clip, or take the direction out of the prompt.")
    return [obedience.score(clip, wanted, "pictures" if len(clip) == 1 else "clips") for clip in clips_]


def _by_clip(pictures, prompt, name):
    folders = _folders()
    if name not in folders:
        there = f"there are {', '.join(sorted(folders))}" if folders else "there is none yet"
        raise ValueError(f"clip_folder is {name!r}, and the verifier CLIP needs one in models/clip_vision; {there}. "
                         f"{clips.HAVE_ONE}")
    clip = clips.Clip(folders[name])
    device = mm.get_torch_device()
    mm.free_memory(sum(weight.nbytes for weight in clip.model.parameters()), device)  # it is here for this one call alone
    clip.to(device)
    return clips.scores(clip, list(pictures), [prompt] * len(pictures))


def _folders() -> dict[str, Path]:
    return {place.name: place for root in folder_paths.get_folder_paths("clip_vision") if Path(root).is_dir()
            for place in Path(root).iterdir() if clips.is_clip(place)}

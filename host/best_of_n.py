"""The best of several pictures or clips of one prompt, by the judge of the embedded models, a CLIP or a vision-language
model: more drawing for a better result."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as mm
import folder_paths
import torch

from ..evaluation import clip as clips
from ..evaluation import vision_language
from ..evaluation.drawn import obedience, words
from ..evaluation.files import pillow, some

JUDGE, CLIP, VLM = VERIFIERS = "judge of the embedded models", "CLIP", "vision-language model"
NO_FOLDER = "none"
WEIGHTS = ("*.safetensors", "*.bin")


def clip_folders() -> list[str]:
    """"none" and the folders in models/clip_vision that are a CLIP of pictures and texts both, as transformers keeps one."""
    return [NO_FOLDER, *sorted(_folders())]


def vlm_folders() -> list[str]:
    """"none" and the folders in models/LLM, and in folders there, that hold a vision-language model as transformers keeps one."""
    return [NO_FOLDER, *sorted(_vlms())]


def best_of(images: torch.Tensor, prompt: str, verifier: str, clip_folder: str = NO_FOLDER, keep: int = 1, frames: int = 1,
            vlm_folder: str = NO_FOLDER):
    """(the best `keep` of images, best first; the scores as text, a line a candidate; the number of the best, from 0).

    images: an IMAGE (N * frames, H, W, 3) in [0, 1], candidate after candidate: pictures with `frames` 1, else clips. A CLIP's
    score of a clip is the mean of its frames'; a vision-language model sees a clip as one. Of equal scores the first wins.
    Raises ValueError for a prompt that the judge cannot read or that asks for no motion of clips or for one of pictures, a
    network that is not there, pictures that are not finite, images that are no whole clips, and a `keep` beyond N.
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
    if verifier == JUDGE:
        scores = _judged(clips_, prompt)
    elif verifier == CLIP:
        scores = _by_clip(pictures, prompt, clip_folder).reshape(count, frames).mean(1).tolist()
    else:
        scores = _by_vlm(clips_, prompt, vlm_folder)
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
    clip = clips.Clip(_chosen(name, _folders(), "clip_folder", CLIP, "models/clip_vision", clips.HAVE_ONE))
    device = mm.get_torch_device()
    mm.free_memory(sum(weight.nbytes for weight in clip.model.parameters()), device)  # it is here for this one call alone
    clip.to(device)
    return clips.scores(clip, list(pictures), [prompt] * len(pictures))


def _by_vlm(clips_, prompt, name):
    folder = _chosen(name, _vlms(), "vlm_folder", VLM, "models/LLM", vision_language.HAVE_ONE)
    device = mm.get_torch_device()
    mm.free_memory(sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern)), device)
    model = vision_language.LocalModel(folder, str(device), answers=True)
    return model.agreements([pillow(some(clip)) for clip in clips_], [prompt] * len(clips_))


def _chosen(name, folders, given, verifier, place, have_one):
    if name not in folders:
        there = f"there are {', '.join(sorted(folders))}" if folders else "there is none yet"
        raise ValueError(f"{given} is {name!r}, and the verifier {verifier} needs one in {place}; {there}. {have_one}")
    return folders[name]


def _folders() -> dict[str, Path]:
    return {place.name: place for root in folder_paths.get_folder_paths("clip_vision") if Path(root).is_dir()
            for place in Path(root).iterdir() if clips.is_clip(place)}


def _vlms() -> dict[str, Path]:
    try:
        roots = [Path(root) for root in folder_paths.get_folder_paths("LLM")]
    except KeyError:  # nobody has registered it: where the packs with such models keep them
        roots = [Path(folder_paths.models_dir) / "LLM"]
    return {place.relative_to(root).as_posix(): place for root in roots for pattern in ("*", "*/*") for place in root.glob(pattern)
            if vision_language.is_vlm(place)}

"""The measures of many pictures or clips, and what they say together."""
from __future__ import annotations

from statistics import fmean

import numpy as np

from . import clip as clips_
from .drawn import obedience, words
from .files import Item, frames, pillow, some
from .image_reward import ImageReward
from .motion import motion

SCORES = ("clip_score", "preference", "image_reward", "vlm_score")  # of networks, where one was given
# {name: what of a row it chooses by}
VERIFIERS = {"judge": "judge_score", "clip": "clip_score", "preference": "preference", "image_reward": "image_reward", "vlm": "vlm_score"}


def measured(item: Item, world: str = "clips", clip=None, preference=None, image_reward=None, vlm=None) -> dict:
    """A row of figures on one picture or clip: file, prompt, and what applies of obeys and judge_score (prompts of the
    drawn world), clip_score, preference, image_reward, vlm_score, features (of a clip's middle frame), motion (three frames or more).

    clip, preference: `clip.Clip`s. image_reward: an `image_reward.ImageReward`. vlm: a `vision_language.LocalModel`. Raises ValueError for a file that cannot be read.
    """
    shown = frames(item.path)
    row = {"file": item.path.name, "prompt": item.prompt}
    if item.prompt:
        try:
            wanted = words.read(item.prompt)
            row |= {"obeys": obedience.obeys(shown, wanted, world), "judge_score": obedience.score(shown, wanted, world)}
        except ValueError as error:
            row["not_judged"] = str(error)
        seen = some(shown)
        for name, model, score in (("clip_score", clip, clips_.scores), ("preference", preference, clips_.preferences),
                                   ("image_reward", image_reward, ImageReward.scores)):
            if model:
                row[name] = float(score(model, seen, [item.prompt] * len(seen)).mean())
        if vlm:
            row["vlm_score"] = vlm.agreements([pillow(seen)], [item.prompt])[0]
    if clip:
        row["features"] = clip.pictures(shown[len(shown) // 2][None])[0]
    if len(shown) > 2:
        row["motion"] = motion(shown)
    return row


def chosen(rows: list[dict], verifier: str, best_of: int | None = None) -> tuple[list[dict], list[dict]]:
    """(the first, the best) of the rows of each prompt, of its first `best_of` ones. verifier: of VERIFIERS. Of equal ones
    the first.

    Raises ValueError where a prompt has fewer, or the verifier could not say anything.
    """
    by_prompt = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    key = VERIFIERS[verifier]
    for prompt, group in by_prompt.items():
        if best_of and len(group) < best_of:
            raise ValueError(f"{prompt!r} has {len(group)} pictures, and the best of {best_of} was asked for.")
        if missing := [row for row in group if key not in row]:
            why = missing[0].get("not_judged", "It needs its folder, and a prompt.")
            raise ValueError(f"{missing[0]['file']}: the verifier {verifier} cannot judge it. {why}")
    groups = [group[:best_of] for group in by_prompt.values()]
    return [group[0] for group in groups], [max(group, key=lambda row: row[key]) for group in groups]


def together(rows: list[dict]) -> dict[str, float]:
    """{figure: mean over the rows that have it}; "all": the share of pictures that show everything their prompts name."""
    found = {"files": len(rows), "judged": sum("obeys" in row for row in rows)}
    values = {}
    for row in rows:
        for name, right in row.get("obeys", {}).items():
            values.setdefault(name, []).append(right)
        if "obeys" in row:
            values.setdefault("all", []).append(all(row["obeys"].values()))
        scores = {name: row[name] for name in SCORES if name in row}
        for name, value in (scores | row.get("motion", {})).items():
            values.setdefault(name, []).append(value)
    for name in ("all", *SCORES):  # behind what they sum up
        if name in values:
            values[name] = values.pop(name)
    return found | {name: round(fmean(map(float, seen)), 4) for name, seen in values.items()}

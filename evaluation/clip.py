"""A CLIP from a folder as transformers keeps it: how well pictures and texts go together, and pictures' features.

Nothing is downloaded. A preference model that is a CLIP, as PickScore, is such a folder too.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .files import config_of, eight_bits

BATCH = 16  # pictures at a time
HAVE_ONE = ("A folder with config.json, the weights, preprocessor_config.json and the tokenizer's files is expected, as "
            "`hf download openai/clip-vit-large-patch14 --local-dir FOLDER` fetches it.")


def is_clip(folder: Path) -> bool:
    """Whether this is the folder of a CLIP, of pictures and texts both."""
    return config_of(folder).get("model_type") == "clip"


class Clip:
    """The network of a folder, in fp32. Raises FileNotFoundError and ValueError saying what to fetch."""

    def __init__(self, folder: Path, device="cpu"):
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder. {HAVE_ONE}")
        if not is_clip(folder):
            raise ValueError(f"{folder}: its config.json is missing or of no CLIP. {HAVE_ONE}")
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            model, told = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: {str(error).splitlines()[0]} {HAVE_ONE}") from error
        if told["missing_keys"]:
            raise ValueError(f"{folder}: {len(told['missing_keys'])} tensors are not in its weights, first "
                             f"{sorted(told['missing_keys'])[0]}. {HAVE_ONE}")
        self.model, self.scale = model.eval().float().requires_grad_(False), float(model.logit_scale.detach().exp())
        self.to(device)

    def to(self, device) -> None:
        """Compute there from now on."""
        self.model, self.device = self.model.to(device), device

    @torch.inference_mode()
    def pictures(self, pictures) -> np.ndarray:
        """Features (N, D) of length 1, float64, of pictures: each (H, W, 3) in [0, 1], of any size."""
        found = []
        for at in range(0, len(pictures), BATCH):
            given = self.processor(eight_bits(pictures[at : at + BATCH]), return_tensors="pt", input_data_format="channels_last")
            pooled = self.model.vision_model(pixel_values=given["pixel_values"].to(self.device)).pooler_output
            found.append(self.model.visual_projection(pooled))
        return _unit(torch.cat(found))

    @torch.inference_mode()
    def texts(self, prompts: list[str]) -> np.ndarray:
        """Features (N, D) of length 1, float64. What is longer than the CLIP reads, often 77 tokens, is cut off."""
        most = self.model.config.text_config.max_position_embeddings
        given = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        given = given.to(self.device)
        pooled = self.model.text_model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).pooler_output
        return _unit(self.model.text_projection(pooled))


def _unit(features):
    features = features.double().cpu().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def scores(clip: Clip, pictures, prompts: list[str]) -> np.ndarray:
    """CLIP score of each picture with its prompt: 100 times the cosine of their features (Hessel et al. 2021; the factor is
    torchmetrics'). Below 0 it stays as it is, so that of two bad ones the better is known."""
    return 100 * (clip.pictures(pictures) * clip.texts(prompts)).sum(1)


def preferences(clip: Clip, pictures, prompts: list[str]) -> np.ndarray:
    """What a preference model thinks of each picture: the cosine times the scale that the model has learnt (Kirstain et al.
    2023)."""
    return clip.scale * (clip.pictures(pictures) * clip.texts(prompts)).sum(1)

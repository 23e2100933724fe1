"""ImageReward (Xu et al. 2023) from a local folder: how much people are likely to prefer a picture for its prompt.

Its own library asks the Hub for a tokenizer when it starts. Its network is BLIP's, a ViT whose tokens a BERT looks at, with a
few linear layers behind, and transformers has BLIP's two halves: here they get the file's weights. Nothing is downloaded.
"""
from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import nn

from .files import eight_bits

BATCH = 8  # pictures at a time
TOKENS = 35  # of a prompt; what is longer is cut off
HEAD = 64  # channels of an attention head, in both halves and in every size of BLIP
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the rewards in its authors' validation set
LAYERS = (0, 2, 4, 6, 7)  # of the linear layers in their list; the others are dropouts
FILES = ("ImageReward.pt", "ImageReward.safetensors")
HAVE_ONE = ("A folder with ImageReward.pt and the tokenizer of BERT is expected: `hf download THUDM/ImageReward ImageReward.pt --local-dir "
            "FOLDER`, then `hf download google-bert/bert-base-uncased vocab.txt tokenizer.json tokenizer_config.json --local-dir FOLDER`.")
POSITIONS = "embeddings.position_ids"  # 0, 1, 2 and so on, which not every version keeps
# The picture's half in the file, and in transformers.
VISION = ((r"^cls_token$", "embeddings.class_embedding"), (r"^pos_embed$", "embeddings.position_embedding"),
          (r"^patch_embed\.proj\.", "embeddings.patch_embedding."), (r"^norm\.", "post_layernorm."),
          (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."), (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
          (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
          (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."))


class ImageReward:
    """The network of a folder, in fp32. Raises FileNotFoundError and ValueError saying what to fetch."""

    def __init__(self, folder: Path, device="cpu"):
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder. {HAVE_ONE}")
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder}: has neither {' nor '.join(FILES)}. {HAVE_ONE}")
        if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
            raise FileNotFoundError(f"{folder}: has neither vocab.txt nor tokenizer.json. {HAVE_ONE}")
        from transformers import BertTokenizer, CLIPImageProcessor
        try:
            self.tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
            tensors = _read(path)
            halves = {half: {name.removeprefix(f"blip.{half}."): value for name, value in tensors.items() if name.startswith(f"blip.{half}.")}
                      for half in ("visual_encoder", "text_encoder")}
            self.vision = _vision(halves["visual_encoder"])
            self.text = _text(halves["text_encoder"], self.vision.config.hidden_size)
            self.rate = _rating({name: value for name, value in tensors.items() if name.startswith("mlp.")})
        except (OSError, KeyError, RuntimeError, ValueError, UnpicklingError) as error:
            raise ValueError(f"{path}: is not ImageReward's ({str(error).splitlines()[0]}). {HAVE_ONE}") from error
        side = self.vision.config.image_size
        self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self.to(device)

    def to(self, device) -> None:
        """Compute there from now on."""
        self.device = device
        for part in (self.vision, self.text, self.rate):
            part.eval().float().requires_grad_(False).to(device)

    @torch.inference_mode()
    def scores(self, pictures, prompts: list[str]) -> np.ndarray:
        """Rewards (N,) of pictures, each (H, W, 3) in [0, 1] of any size, each for its prompt: 0 is the mean of what its authors
        validated on, 1 a standard deviation better. The middle square of a picture is looked at."""
        found = []
        for at in range(0, len(pictures), BATCH):
            given = self.processor(eight_bits(pictures[at : at + BATCH]), return_tensors="pt", input_data_format="channels_last")
            said = self.tokenizer(list(prompts[at : at + BATCH]), padding="max_length", truncation=True, max_length=TOKENS,
                                  return_tensors="pt").to(self.device)
            seen = self.vision(pixel_values=given["pixel_values"].to(self.device)).last_hidden_state
            read = self.text(input_ids=said["input_ids"], attention_mask=said["attention_mask"], encoder_hidden_states=seen,
                             encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self.device)).last_hidden_state
            found.append((self.rate(read[:, 0])[:, 0] - MEAN) / DEVIATION)
        return torch.cat(found).double().cpu().numpy()


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _vision(tensors: dict[str, torch.Tensor]) -> nn.Module:
    from transformers.models.blip.modeling_blip import BlipVisionConfig, BlipVisionModel
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    model = BlipVisionModel(BlipVisionConfig(
        hidden_size=width, intermediate_size=len(tensors["blocks.0.mlp.fc1.weight"]), num_hidden_layers=_count(tensors, "blocks"),
        num_attention_heads=width // HEAD, patch_size=patch, image_size=patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5),
        layer_norm_eps=1e-6, hidden_act="gelu"))
    renamed = {}
    for name, value in tensors.items():
        for theirs, ours in VISION:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return _filled(model, renamed)


def _text(tensors: dict[str, torch.Tensor], seen: int) -> nn.Module:
    from transformers.models.blip.modeling_blip_text import BlipTextConfig, BlipTextModel
    words, width = tensors["embeddings.word_embeddings.weight"].shape
    model = BlipTextModel(BlipTextConfig(
        vocab_size=words, hidden_size=width, encoder_hidden_size=seen, num_attention_heads=width // HEAD, hidden_act="gelu",
        intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.weight"]), num_hidden_layers=_count(tensors, "encoder.layer"),
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]), layer_norm_eps=1e-12, is_decoder=True),
        add_pooling_layer=False)
    return _filled(model, {name: value for name, value in tensors.items() if name != POSITIONS})


def _filled(model: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    told = model.load_state_dict(tensors, strict=False)
    missing = [name for name in told.missing_keys if name != POSITIONS]
    if missing or told.unexpected_keys:
        raise ValueError(f"{missing[0]} is missing" if missing else f"{told.unexpected_keys[0]} is too much")
    return model


def _rating(tensors: dict[str, torch.Tensor]) -> nn.Module:
    weights = [tensors[f"mlp.layers.{i}.weight"] for i in LAYERS]
    model = nn.Sequential(*(nn.Linear(weight.shape[1], weight.shape[0]) for weight in weights))
    return _filled(model, {f"{i}.{kind}": tensors[f"mlp.layers.{layer}.{kind}"] for i, layer in enumerate(LAYERS) for kind in ("weight", "bias")})


def _count(tensors, stem: str) -> int:
    return 1 + max(int(found[1]) for name in tensors if (found := re.match(rf"{re.escape(stem)}\.(\d+)\.", name)))

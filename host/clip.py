"""What the pack's text encoders share: tokenizer files, and the recipe for a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget

from .compat import accepts
from .first_result import FirstResult

TOKENIZER_KEYS = ("spiece_model", "tokenizer_json")  # uint8 tensors: sentencepiece's model, tokenizers' JSON


class Pieces:
    """Text <-> token ids, without any special tokens. data: one of TOKENIZER_KEYS -> uint8 tensor, kept as `data`."""

    def __init__(self, data: dict[str, torch.Tensor]):
        self.data = {key: data[key] for key in TOKENIZER_KEYS if key in data}
        raw = {key: value.numpy().tobytes() for key, value in self.data.items()}
        if "spiece_model" in raw:
            import sentencepiece
            model = sentencepiece.SentencePieceProcessor(model_proto=raw["spiece_model"])
            self.encode, self.piece, self.decode = model.encode, model.id_to_piece, model.decode
            self.count, self.id = model.get_piece_size(), model.piece_to_id
        else:
            import tokenizers
            model = tokenizers.Tokenizer.from_str(raw["tokenizer_json"].decode("utf-8"))
            self.encode = lambda text: model.encode(text, add_special_tokens=False).ids
            self.piece, self.decode = model.id_to_token, model.decode
            self.count, self.id = model.get_vocab_size(), model.token_to_id


def read_tokenizer(path: Path, wanted: str) -> dict[str, torch.Tensor]:
    """Tokenizer file -> what Pieces takes. wanted: words for the error. Raises ValueError when it is none."""
    data = torch.frombuffer(bytearray(path.read_bytes() or b"\0"), dtype=torch.uint8)
    found = {"tokenizer_json" if path.suffix == ".json" else "spiece_model": data}
    try:
        Pieces(found)
    except Exception as error:  # sentencepiece and tokenizers raise types of their own
        raise ValueError(f"{path.name}: not a tokenizer ({error}). {wanted} is needed.") from error
    return found


def tokenizer_inside(data: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The data, if Pieces reads it. name: of the file that it is from. Raises ValueError when it is no tokenizer."""
    try:
        Pieces(data)
    except Exception as error:
        raise ValueError(f"{name}: the tokenizer inside it cannot be read ({error}). The file is damaged: get it again, or "
                         "choose another tokenizer in tokenizer_name.") from error
    return data


def tokenizer_beside(path: Path, names: Sequence[str], wanted: str) -> Path:
    """One of `names` next to a file, in a folder, or in the folder `tokenizer` beside either. Raises
    FileNotFoundError."""
    folder = path if path.is_dir() else path.parent
    for file in [place / name for place in (folder, folder.parent / "tokenizer") for name in names]:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{path.name}: no tokenizer inside it, and no {' or '.join(names)} in {folder}. Copy {wanted} "
                            "there, or choose one in tokenizer_name.")


class TextEncoder(sd1_clip.SD1ClipModel):
    """The host's frame around one network, which keeps what load_sd found: some hosts only log it."""

    def load_sd(self, sd):
        self.differing = super().load_sd(sd)
        return self.differing


def watch_clip(clip, name: str, weights) -> None:
    """Look at the first states that the network computes; arguments as for FirstResult."""
    encoder = clip.cond_stage_model
    FirstResult(name, weights).watch(getattr(encoder, encoder.clip))


def native_clip(tokenizer, model, state_dict: dict, tokenizer_data: dict, model_options: dict, name: str,
                disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The host's CLIP of these classes with these weights. model: a TextEncoder. name: of the file, for the error.

    Raises ValueError when the host's network has other weights; scales of inputs, which it may not use, aside.
    """
    keywords = {"disable_dynamic": disable_dynamic} if accepts(comfy.sd.CLIP.__init__, "disable_dynamic") else {}
    at_once = accepts(comfy.sd.CLIP.__init__, "state_dict")  # these want quantised weights before they move a network
    if at_once:
        keywords["state_dict"] = [state_dict]
    parameters = comfy.utils.calculate_parameters(state_dict)
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, model), tokenizer_data=tokenizer_data, parameters=parameters,
                         model_options=model_options, **keywords)
    if not at_once:
        clip.load_sd(state_dict)
    missing, unexpected = ([key for key in keys if not key.endswith(("scale_input", "input_scale"))]
                           for keys in clip.cond_stage_model.differing)
    if missing or unexpected:
        raise ValueError(f"{name}: this ComfyUI's network has other weights: missing {missing}, unexpected {unexpected}.")
    return clip

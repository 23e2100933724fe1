"""python run.py convert: a Sana, SANA-Video or CogVideoX transformer's file in another naming or number type, or quantised; or a LoRA's."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..cogvideo_core import checkpoint as cogvideo_checkpoint
from ..cogvideo_core import config as cogvideo_config
from ..cogvideo_core import lookalikes as cogvideo_names
from ..cogvideo_core import precision as cogvideo_precision
from ..headless import installation
from ..kernels.quant import FORMATS
from ..kernels.quant_layers import float_shapes, quantised, summary, to_metadata
from ..kernels.stated_config import INSIDE, read_config_tensor
from ..sana_core import checkpoint as sana_checkpoint
from ..sana_core import config as sana_config
from ..sana_core import lookalikes as sana_names
from ..sana_core import precision as sana_precision
from ..sana_core import video_checkpoint as sana_video_checkpoint
from ..sana_core import video_config as sana_video_config
from ..sana_core import video_precision as sana_video_precision
from ..storage.checkpoints import check_finite, open_checkpoint, write_converted
from .convert_adapter import changes_inside, convert_adapter, is_adapter, merged, without_adapter

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Family(NamedTuple):
    """Where a family's knowledge of its files is, and what its layouts are called there."""

    config: ModuleType
    checkpoint: ModuleType
    names: ModuleType
    precision: ModuleType
    layouts: dict[str, str]
    word: str


SANA = Family(sana_config, sana_checkpoint, sana_names, sana_precision, {"diffusers": "diffusers", "native": "nvlabs"}, "sana")
SANA_VIDEO = Family(sana_video_config, sana_video_checkpoint, sana_names, sana_video_precision, SANA.layouts, "sana_video")
COGVIDEOX = Family(cogvideo_config, cogvideo_checkpoint, cogvideo_names, cogvideo_precision,
                   {"diffusers": "diffusers", "native": "sat", "comfy": "comfy"}, "cogvideox")


def parser():
    parser = argparse.ArgumentParser(
        prog="run.py convert", description="A Sana, SANA-Video or CogVideoX transformer's file in another naming or number type, or "
        "quantised; or a LoRA's file in another naming or number type. The input stays as it is; the output is one file that Load "
        "Sana Model, Load SANA-Video Model, Load CogVideoX Model or Load LoRA reads.")
    parser.add_argument("input", type=Path, help="a file, a sharded folder, or a diffusers pipeline folder")
    parser.add_argument("--output", type=Path, required=True,
                        help="the file to write, *.safetensors (a LoRA for SAT: or *.pt); never overwritten")
    parser.add_argument("--layout", choices=("diffusers", "native", "comfy", "kohya", "nvlabs"), default="diffusers",
                        help="names of the tensors: diffusers' (default), native (NVlabs' for Sana and SANA-Video, SAT's for CogVideoX), "
                             "comfy (ComfyUI's own CogVideoX); of a LoRA diffusers', native (SAT's), kohya or nvlabs (Sana's, "
                             "stacked)")
    parser.add_argument("--alpha", type=float, default=0.0,
                        help="of a LoRA whose file states none; its rank (scale 1) unless given")
    parser.add_argument("--merge", action="store_true", help="of a checkpoint of SAT's LoRA training, which holds the model too: "
                        "write the model with the LoRA in its weights, instead of the LoRA alone")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="number type of what is not quantised; as it is by default")
    parser.add_argument("--quantize", choices=tuple(FORMATS),
                        help="int8: least loss, ComfyUI 0.27 and newer. fp8: any ComfyUI, calibrated with --text-encoder; "
                             "without, it saves memory and no time. nvfp4: smallest, for Blackwell GPUs")
    parser.add_argument("--text-encoder", type=Path, help="calibrate fp8: the model's Gemma-2 or T5, for the prompts that a "
                        "few steps are sampled of. Needs ComfyUI, as run.py demo does")
    parser.add_argument("--prompts", type=Path, help="a file of prompts to calibrate with, one a line; else four of ours")
    return parser


def convert(path: Path, output: Path, layout: str = "diffusers", dtype: torch.dtype | None = None,
            quantize: str | None = None, progress=lambda parts: parts, text_encoder: Path | None = None,
            prompts: Path | None = None, merge: bool = False) -> list[str]:
    """Write `output`, a block of the model at a time; returns lines that say what was done.

    layout: a name in Family.layouts. dtype: of floating point tensors that are not quantised; None keeps theirs.
    quantize: a name of FORMATS; names are then diffusers'. text_encoder: what fp8 is calibrated with, on the lines of the
    file `prompts` where there is one. merge: the file holds a LoRA beside the model, which goes into the weights.
    Raises ValueError and OSError before anything is written.
    """
    path, output = Path(path), Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output.name}: the output is a safetensors file, and its name has to end so.")
    if quantize and layout != "diffusers":
        raise ValueError("a quantised file has diffusers' names: leave --layout away.")
    if text_encoder and quantize != "fp8":
        raise ValueError("only fp8 is calibrated: leave --text-encoder away.")
    if prompts and not text_encoder:
        raise ValueError("prompts are read by the model's text encoder: give it with --text-encoder.")
    if merge and text_encoder:
        raise ValueError("fp8 is calibrated on a model that is whole: merge first, and quantise what was written.")
    if output.exists():
        raise FileExistsError(f"{output} is there already, and nothing is overwritten: give another name.")
    pipeline = (path / "model_index.json").is_file()
    checkpoint = open_checkpoint(path, **({"subfolder": "transformer"} if pipeline else {}))
    family = family_of(checkpoint.shapes)
    if layout not in family.layouts:
        raise ValueError(f"there is no layout {layout} of this model, only {', '.join(family.layouts)}.")

    key, tensors, changes = family.config.CONFIG_KEY, checkpoint.load(), {}
    if merge:
        changes = changes_inside(path, tensors)

    def strip(mapping):
        return family.names.strip_prefix(without_adapter(mapping) if merge else mapping)

    shapes, tensors = strip(checkpoint.shapes), strip(tensors)
    config, place = checkpoint.config, checkpoint.config_place
    if len(float_shapes(shapes, strip(checkpoint.dtypes))) != len(shapes):
        raise ValueError(f"{path.name}: this file is quantised already. Convert the file that it was made from.")
    if key in tensors:
        config, place = read_config_tensor(tensors.pop(key), key, f"{path.name}: "), INSIDE
        shapes = {name: shape for name, shape in shapes.items() if name != key}
    identity = family.config.identify(shapes, config, str(path), place)
    family.checkpoint.check_shapes(shapes, identity, path.name)
    canonical = family.checkpoint.to_canonical(tensors, identity.layout)
    check_finite(canonical, path.name)

    largest = calibrated(path, family, text_encoder, prompts) if text_encoder else {}

    def change(part):
        part = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in merged(part, changes).items()}
        if quantize:
            return quantised(part, quantize, family.precision.KEPT, largest)
        return family.checkpoint.from_canonical(part, family.layouts[layout]), {}

    entries = {}

    def metadata(found):
        entries.update(found)
        told = {"format": "pt", "config": json.dumps(dataclasses.asdict(identity.params))}
        return told | (to_metadata(found) if found else {})

    output.parent.mkdir(parents=True, exist_ok=True)
    write_converted(output, blocks(canonical), change, metadata, progress)
    lora = f", with its LoRA of {len(changes)} layers" if merge else ""
    lines = [f"{path.name}: {identity.variant}{lora}", *(f"warning: {text}" for text in identity.warnings)]
    if quantize:
        lines += summary({name: tuple(t.shape) for name, t in canonical.items()}, entries, family.precision.KEPT)
    if quantize == "fp8":
        lines.append(f"calibrated: {len(largest)} layers have an input_scale" if largest else
                     "weights only, no input_scale: --text-encoder FILE calibrates")
    before = sum(file.stat().st_size for file in checkpoint.files)
    return lines + [f"{output}: {output.stat().st_size / 1e6:,.1f} MB, of {before / 1e6:,.1f}"]


def family_of(shapes) -> Family:
    """Whose file this looks like."""
    what = sana_names.looks_like(shapes)
    return SANA_VIDEO if "SANA-Video transformer" in what else SANA if "Sana transformer" in what else COGVIDEOX


def adapter_shapes(path):
    """Shapes by key of a file, or of a folder that is no pipeline: a LoRA is never one."""
    return {} if (path / "model_index.json").is_file() else open_checkpoint(path).shapes


def calibrated(path, family, text_encoder, prompts):
    """{layer: largest magnitude of its inputs}, measured in ComfyUI, which is started in this process if it was not yet."""
    given = {}
    if prompts:
        given = {"prompts": [line.strip() for line in Path(prompts).read_text("utf-8").splitlines() if line.strip()]}
        if not given["prompts"]:
            raise ValueError(f"{Path(prompts).name}: there is no prompt in it.")
    if not Path(text_encoder).exists():
        raise FileNotFoundError(f"{text_encoder}: no such file or folder")
    from ..host import process  # here: nothing else in this file needs ComfyUI

    process.start(installation.host())
    from ..host.calibration import largest_inputs_of_file

    return largest_inputs_of_file(path, family.word, text_encoder, **given)


def blocks(canonical: dict) -> list[dict]:
    """Canonical tensors by block, what stands around the blocks first: no layout stacks tensors of different parts."""
    parts = {}
    for name, tensor in canonical.items():
        match = re.match(r"transformer_blocks\.(\d+)\.", name)
        parts.setdefault(int(match[1]) if match else -1, {})[name] = tensor
    return [parts[number] for number in sorted(parts)]


def main(arguments):
    options = parser().parse_args(arguments)
    try:
        if not options.merge and options.input.exists() and is_adapter(adapter_shapes(options.input)):
            if options.quantize or options.text_encoder:
                raise ValueError(f"{options.input.name} is a LoRA, which is not quantised: leave --quantize and --text-encoder "
                                 "away.")
            print("\n".join(convert_adapter(options.input, options.output, options.layout, DTYPES.get(options.dtype),
                                            options.alpha)))
            return 0
        lines = convert(options.input, options.output, options.layout, DTYPES.get(options.dtype), options.quantize,
                        lambda parts: tqdm(parts, desc="blocks", mininterval=1), options.text_encoder, options.prompts,
                        options.merge)
    except (ValueError, OSError, installation.SetupError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0

"""python run.py convert: a Sana or CogVideoX transformer's file in another naming or number type, or quantised."""

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

from .cogvideo_core import checkpoint as cogvideo_checkpoint
from .cogvideo_core import config as cogvideo_config
from .cogvideo_core import lookalikes as cogvideo_names
from .cogvideo_core import precision as cogvideo_precision
from .kernels.quant import FORMATS
from .kernels.quant_layers import float_shapes, quantised, summary, to_metadata
from .sana_core import checkpoint as sana_checkpoint
from .sana_core import config as sana_config
from .sana_core import lookalikes as sana_names
from .sana_core import precision as sana_precision
from .storage import open_checkpoint, write_converted

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Family(NamedTuple):
    """Where a family's knowledge of its files is, and what its layouts are called there."""

    config: ModuleType
    checkpoint: ModuleType
    names: ModuleType
    precision: ModuleType
    layouts: dict[str, str]


SANA = Family(sana_config, sana_checkpoint, sana_names, sana_precision, {"diffusers": "diffusers", "native": "nvlabs"})
COGVIDEOX = Family(cogvideo_config, cogvideo_checkpoint, cogvideo_names, cogvideo_precision,
                   {"diffusers": "diffusers", "native": "sat", "comfy": "comfy"})


def parser():
    parser = argparse.ArgumentParser(
        prog="run.py convert", description="A Sana or CogVideoX transformer's file in another naming or number type, or "
        "quantised. The input stays as it is; the output is one safetensors file that Load Sana Model and Load CogVideoX "
        "Model read.")
    parser.add_argument("input", type=Path, help="a file, a sharded folder, or a diffusers pipeline folder")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, *.safetensors; never overwritten")
    parser.add_argument("--layout", choices=("diffusers", "native", "comfy"), default="diffusers",
                        help="names of the tensors: diffusers' (default), native (NVlabs' for Sana, SAT's for CogVideoX), "
                             "comfy (ComfyUI's own CogVideoX)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="number type of what is not quantised; as it is by default")
    parser.add_argument("--quantize", choices=tuple(FORMATS),
                        help="int8: least loss, ComfyUI 0.27 and newer. fp8: any ComfyUI; here without calibration, so it "
                             "saves memory and no time (the node Quantize Sana / CogVideoX calibrates). nvfp4: smallest, for "
                             "Blackwell GPUs")
    return parser


def convert(path: Path, output: Path, layout: str = "diffusers", dtype: torch.dtype | None = None,
            quantize: str | None = None, progress=lambda parts: parts) -> list[str]:
    """Write `output`, a block of the model at a time; returns lines that say what was done.

    layout: a name in Family.layouts. dtype: of floating point tensors that are not quantised; None keeps theirs.
    quantize: a name of FORMATS; names are then diffusers'. Raises ValueError and FileExistsError before anything is written.
    """
    path, output = Path(path), Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output.name}: the output is a safetensors file, and its name has to end so.")
    if quantize and layout != "diffusers":
        raise ValueError("a quantised file has diffusers' names: leave --layout away.")
    pipeline = (path / "model_index.json").is_file()
    checkpoint = open_checkpoint(path, **({"subfolder": "transformer"} if pipeline else {}))
    sana = any(part in key for key in checkpoint.shapes for part in ("ff.conv_inverted.", "mlp.inverted_conv."))
    family = SANA if sana else COGVIDEOX
    if layout not in family.layouts:
        raise ValueError(f"there is no layout {layout} of this model, only {', '.join(family.layouts)}.")

    strip, key = family.names.strip_prefix, family.config.CONFIG_KEY
    shapes, tensors, config = strip(checkpoint.shapes), strip(checkpoint.load()), checkpoint.config
    if len(float_shapes(shapes, strip(checkpoint.dtypes))) != len(shapes):
        raise ValueError(f"{path.name}: this file is quantised already. Convert the file that it was made from.")
    if key in tensors:
        config = json.loads(tensors.pop(key).numpy().tobytes())
        shapes = {name: shape for name, shape in shapes.items() if name != key}
    identity = family.config.identify(shapes, config, str(path))
    family.checkpoint.check_shapes(shapes, identity, path.name)
    canonical = family.checkpoint.to_canonical(tensors, identity.layout)

    def change(part):
        part = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in part.items()}
        if quantize:
            return quantised(part, quantize, family.precision.KEPT)
        return family.checkpoint.from_canonical(part, family.layouts[layout]), {}

    entries = {}

    def metadata(found):
        entries.update(found)
        told = {"format": "pt", "config": json.dumps(dataclasses.asdict(identity.params))}
        return told | (to_metadata(found) if found else {})

    output.parent.mkdir(parents=True, exist_ok=True)
    write_converted(output, blocks(canonical), change, metadata, progress)
    lines = [f"{path.name}: {identity.variant}"]
    if quantize:
        lines += summary({name: tuple(t.shape) for name, t in canonical.items()}, entries, family.precision.KEPT)
    before = sum(file.stat().st_size for file in checkpoint.files)
    return lines + [f"{output}: {output.stat().st_size / 1e6:,.1f} MB, of {before / 1e6:,.1f}"]


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
        lines = convert(options.input, options.output, options.layout, DTYPES.get(options.dtype), options.quantize,
                        lambda parts: tqdm(parts, desc="blocks", mininterval=1))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0

"""From a file to the host's ModelPatcher: the one recipe for diffusion models."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import torch

from ..kernels.quant import READ_ONLY, READABLE
from ..kernels.quant_layers import float_shapes, from_metadata, read_layers, unscaled_layers, without_layers
from ..kernels.stated_config import INSIDE, read_config_tensor
from ..storage.checkpoints import open_checkpoint
from .compat import QUANTISED_SINCE, VERSION, hand_over_layers, load_weights, model_patcher, quantised_formats
from .files import is_pipeline
from .first_result import FirstResult
from .processor import models_in_bf16

STACKED = ("nvlabs", "sat")  # layouts in which one matrix holds several layers, and one scale would have to serve them all
WEIGHT_DTYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def weight_dtype_of(name: str) -> torch.dtype | None:
    """torch dtype of a WEIGHT_DTYPES name, None for "default". Raises ValueError."""
    if name not in WEIGHT_DTYPES:
        raise ValueError(f"weight_dtype is {name!r}: choose one of {', '.join(WEIGHT_DTYPES)}.")
    return WEIGHT_DTYPES[name]


def report(path: Path, identity, evidence: str | None = None) -> None:
    """Tell the log what a file is. identity: of a core. evidence: in place of the identity's own."""
    logging.info("%s: %s; %s", path.name, identity.variant, evidence or identity.evidence)
    for warning in identity.warnings:
        logging.warning("%s: %s.", path.name, warning)


class ModelFile:
    """A diffusion model on disk, looked at and not read: file, sharded folder or diffusers pipeline.

    shapes: {key: shape} of its tensors in its own layout, without a saver's prefix and as if none were quantised.
    config: the model's config, or what a model saved from here keeps under `config_key`, or None. from_here: whether it
    is the latter. config_place: as in storage.Checkpoint. subfolder: where the model lies in a pipeline. packed: a module of
    a core that turns files of some quantiser back, as sana_core.nunchaku. Raises what storage.open_checkpoint does, and
    ValueError for a saved config that cannot be read.
    """

    def __init__(self, path, config_key: str, strip_prefix, subfolder: str = "transformer", packed=None):
        self.path = Path(path)
        self.again = functools.partial(ModelFile, path, config_key, strip_prefix, subfolder, packed)
        self.checkpoint = open_checkpoint(self.path, **({"subfolder": subfolder} if is_pipeline(self.path) else {}))
        self.names = strip_prefix({key: key for key in self.checkpoint.shapes})  # the model's own -> the file's
        self.from_here = config_key in self.names
        saved_config = self.names.pop(config_key, None)
        self.packed = packed if packed and packed.is_packed(self.names) else None
        as_float = self.packed.diffusers_shapes if self.packed else float_shapes
        try:
            self.shapes = as_float(self._of(self.checkpoint.shapes), self._of(self.checkpoint.dtypes))
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from None
        self.config, self.config_place, self.tensors = self.checkpoint.config, self.checkpoint.config_place, None
        if self.from_here:
            everything = self.checkpoint.load()
            self.config = read_config_tensor(everything[saved_config], config_key, f"{self.path.name}: ")
            self.config_place, self.tensors = INSIDE, self._of(everything)

    def _of(self, mapping):
        """What a mapping by the file's keys has for this model, by the model's own."""
        return {name: mapping[key] for name, key in self.names.items() if key in mapping}

    def read(self, layout: str, to_canonical, dtype: torch.dtype | None) -> tuple[dict, dict]:
        """(canonical tensors, {layer: entry} of those that stay quantised).

        dtype: what the weights shall be kept as; None for what they are in the file, anything else turns quantised ones
        back, as are those that no host computes with in any case. Raises ValueError for a format that this host does not
        know, or that cannot be turned back.
        """
        try:
            tensors, layers = self._layers()
            every = dtype is not None or layout in STACKED
            back = {layer: entry for layer, entry in layers.items() if every or entry["format"] in READ_ONLY}
            if back:
                plain = torch.bfloat16 if dtype is None or dtype.itemsize == 1 else dtype
                logging.info("%s: quantised weights of %d layers turned back to %s%s", self.path.name, len(back), plain,
                             "" if every else ", the memory of unquantised ones; weight_dtype fp8_e4m3fn takes half")
                tensors = without_layers(tensors, back, plain)
                layers = {layer: entry for layer, entry in layers.items() if layer not in back}
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from None
        self._check_formats(layers)
        # The entries ride along, as they are named after the same layers.
        entries = {f"{layer}.comfy_quant": entry for layer, entry in layers.items()}
        tensors = to_canonical(tensors, layout)
        layers = {key.removesuffix(".comfy_quant"): entry for key, entry in to_canonical(entries, layout).items()}
        if dtype is None and "float8_e4m3fn" in quantised_formats():
            layers |= unscaled_layers(tensors, layers)
        return tensors, layers

    def first_result(self, layout: str, to_canonical) -> FirstResult:
        """What looks at the first result of a network with the weights that `read` gives."""
        again, name = self.again, self.path.name  # and not self, which would keep a pickle's tensors
        return FirstResult(name, lambda: to_canonical(again()._layers()[0], layout))

    def _layers(self):
        tensors = self._of(self.checkpoint.load()) if self.tensors is None else self.tensors
        if self.packed:
            logging.info("%s: turned back to bf16, which takes the memory of unquantised weights", self.path.name)
            tensors = self.packed.to_diffusers(tensors)
        told = {f"{layer}.weight": entry for layer, entry in from_metadata(self.checkpoint.metadata).items()}
        return read_layers(tensors, {name.removesuffix(".weight"): entry for name, entry in self._of(told).items()})

    def _check_formats(self, layers):
        strange = {entry["format"] for entry in layers.values()} - quantised_formats()
        if not strange:
            return
        known = [f"ComfyUI {QUANTISED_SINCE[name]} and newer" for name in sorted(strange) if name in QUANTISED_SINCE]
        remedy = "update ComfyUI with all that it needs (comfy-kitchen)"
        if strange <= {*READABLE}:
            remedy += ", or choose weight_dtype bf16, which turns the weights back and takes the memory of unquantised ones"
        raise ValueError(f"{self.path.name}: its weights are quantised as {', '.join(sorted(strange))}, which "
                         f"{known[-1] + ' reads' if known else 'no ComfyUI known here reads'}; this is {VERSION}: {remedy}.")


def diffusion_model(config, state_dict: dict, dtype: torch.dtype | None = None, disable_dynamic: bool = False, layers=None):
    """ModelPatcher around `config`'s model with these weights in it.

    config: a supported_models_base.BASE. state_dict: canonical names, complete (the caller has checked), emptied here.
    dtype: what weights are stored as; None lets the host choose among config.supported_inference_dtypes. Activations
    are always of a supported dtype, whatever the storage. layers: {layer: entry} of quantised weights, as ModelFile.read
    gives them; all others are then stored in the type of the activations.
    """
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    supported = list(config.supported_inference_dtypes)
    if layers:
        dtype = compute = compute_dtype(supported)  # named, even if nothing is cast: layers ask for it
        # What a bare fp8 file holds beside the layers' matrices is small, and no op of the host's reads it in 8 bits.
        state_dict = {key: t.to(dtype) if t.dtype.itemsize == 1 and key.rpartition(".")[0] not in layers else t
                      for key, t in state_dict.items()}
        state_dict = hand_over_layers(config, state_dict, layers)
    else:
        dtype, compute = storage_and_compute(state_dict, dtype, supported)
    config.set_inference_dtype(dtype, compute)

    model = config.get_model(state_dict)
    patcher = model_patcher(model, load_device, offload_device, state_dict, disable_dynamic)
    if not mm.is_device_cpu(offload_device):
        model.to(offload_device)
    load_weights(patcher, model, model.load_model_weights, state_dict, "")
    return patcher


def storage_and_compute(state_dict: dict, dtype: torch.dtype | None, supported: list) -> tuple:
    """(what weights are kept as, what they are cast to for computing or None for as they are).

    dtype: the former, or None to let the host choose. supported: what the model may compute in, best first.
    """
    in_bf16 = torch.bfloat16 in supported and models_in_bf16()
    if dtype is None:
        dtype = mm.unet_dtype(model_params=comfy.utils.calculate_parameters(state_dict), supported_dtypes=supported,
                              weight_dtype=comfy.utils.weight_dtype(state_dict))
        if dtype.itemsize == 2 and dtype not in supported:  # by --fp16-unet
            dtype = compute_dtype(supported)
        if in_bf16 and dtype == torch.float32:
            dtype = torch.bfloat16
    compute = mm.unet_manual_cast(dtype, mm.get_torch_device(), supported)
    if in_bf16 and compute == torch.float32:
        compute = torch.bfloat16 if dtype != torch.bfloat16 else None
    if compute is None and dtype not in supported:
        # The host would compute in fp16 wherever the device can; a model trained in bf16 overflows there.
        compute = compute_dtype(supported)
    return dtype, compute


def compute_dtype(supported: list) -> torch.dtype:
    """What the host would compute in: of `supported`, best first, or fp32 and wider by its options; on a CPU bf16 where that is
    fast. Its option --fp16-unet
    is followed only where the model's own list has fp16: elsewhere the picture would be black."""
    if torch.bfloat16 in supported and models_in_bf16():
        return torch.bfloat16
    wanted = mm.unet_dtype(supported_dtypes=supported)
    if wanted in supported or wanted.itemsize > 2:
        return wanted
    chosen = mm.unet_manual_cast(None, mm.get_torch_device(), supported)
    if wanted.itemsize == 2:
        logging.warning("ComfyUI was told to compute in %s, where this model overflows to black: it computes in %s.", wanted, chosen)
    return chosen

"""Damaged model files: each loads to a model that is right, or is refused by a ValueError that names it.

Without ComfyUI: the header, what the file is, its shapes, its tensors, and the network that takes them. A failure names the
mutation, the file and the seed, which make the same file again. --slow runs ten times as many.
"""

import dataclasses
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from sanacog.cogvideo_core import checkpoint as video, config as video_config
from sanacog.cogvideo_core.autoencoder import CogVideoVAE
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.sana_core import autoencoder_checkpoint as dcae, checkpoint as sana, config as sana_config
from sanacog.sana_core import controlnet_checkpoint as control
from sanacog.sana_core.autoencoder import AutoencoderDC
from sanacog.sana_core.controlnet import SanaControlNet
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.storage.checkpoints import check_finite, open_checkpoint

from .mutations import MUTATIONS, joined, mutated, parts

MODELS = Path(__file__).resolve().parents[2] / "models"
SECONDS = 10  # that no file may take


def controlnet(identity):
    return SanaControlNet(identity.params, identity.params.num_layers, identity.wiring, device="meta")


# What reads a file: identify, check_shapes, to_canonical, the network from an identity.
DOORS = {
    "diffusion_models/sanacog_tiny_sana": (sana_config.identify, sana.check_shapes, sana.to_canonical,
                                           lambda found: SanaTransformer(found.params, device="meta")),
    "diffusion_models/sanacog_tiny_sana_sprint": (sana_config.identify, sana.check_shapes, sana.to_canonical,
                                                  lambda found: SanaTransformer(found.params, device="meta")),
    "diffusion_models/sanacog_tiny_cogvideox": (video_config.identify, video.check_shapes, video.to_canonical,
                                                lambda found: CogVideoTransformer(found.params, device="meta")),
    "controlnet/sanacog_tiny_sana_controlnet": (control.identify_controlnet, control.check_shapes, control.to_canonical, controlnet),
    "vae/sanacog_tiny_dcae": (dcae.identify_autoencoder, dcae.check_shapes, dcae.to_canonical,
                              lambda found: AutoencoderDC(found.params, device="meta")),
    "vae/sanacog_tiny_cogvideox_vae": (video_config.identify_autoencoder, video.check_autoencoder_shapes,
                                       video.autoencoder_to_canonical, lambda found: CogVideoVAE(found.params, device="meta")),
    "loras/sanacog_tiny_sana_outline_lora": None,  # these are looked at by the host's side
    "text_encoders/sanacog_tiny_gemma2": None,
    "text_encoders/sanacog_tiny_t5": None,
}


@contextmanager
def limit(seconds):
    """TimeoutError in the body when it takes longer, in seconds of computing: others may use the machine."""
    def late(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def read(path, door):
    """What a loader does; -> (params or None, {key: tensor} as the network has them)."""
    checkpoint = open_checkpoint(path)
    if door is None:
        tensors, params = checkpoint.load(), None
    else:
        identify, check_shapes, to_canonical, network = door
        identity = identify(checkpoint.shapes, checkpoint.config, str(path), config_place=checkpoint.config_place)
        check_shapes(checkpoint.shapes, identity, path.name)
        tensors, params = to_canonical(checkpoint.load(), identity.layout), identity.params
        network(identity).load_state_dict(tensors, strict=True, assign=True)
    check_finite(tensors, path.name)
    return params, tensors


def kind_of(value):
    """A type that may stand for another: an integer for a float."""
    return float if type(value) is int else type(value)


def wrong(params, sound):
    """Fields of `params` of another type than in the sound file's, or that no model can have."""
    found = []
    for field in dataclasses.fields(params) if params is not None else ():
        value, before = getattr(params, field.name), getattr(sound, field.name)
        whole = "int" in str(field.type) and "float" not in str(field.type)
        if (value is None) != (before is None) and "None" not in str(field.type):
            found.append((field.name, value))
        elif value is not None and before is not None and kind_of(value) is not kind_of(before):
            found.append((field.name, value))
        elif type(value) in (int, float) and not (0 <= value < 1e6 and (type(value) is int or not whole)):
            found.append((field.name, value))
    return found


@pytest.fixture(scope="module")
def sound():
    return {name: read(MODELS / f"{name}.safetensors", door)[0] for name, door in DOORS.items()}


def cases(mutation, count):
    for seed in range(count):
        yield seed, sorted(DOORS)[seed % len(DOORS)]


def check(path, mutation, name, seed, sound):
    """Raise AssertionError, with the seed, unless the mutated file is refused well or right."""
    path.write_bytes(mutated(MODELS / f"{name}.safetensors", mutation, seed))
    said = f"{mutation.__name__} of {name}, seed {seed}"
    try:
        with limit(SECONDS):
            params, tensors = read(path, DOORS[name])
    except (ValueError, FileNotFoundError) as error:
        assert path.name in str(error), f"{said}: {type(error).__name__} does not name the file: {error}"
        return True
    except (Exception, TimeoutError) as error:
        raise AssertionError(f"{said}: {type(error).__name__}: {error}") from error
    assert tensors and all(t.numel() == 0 or t.float().isfinite().all() for t in tensors.values()), f"{said}: NaN loaded"
    assert not (odd := wrong(params, sound[name])), f"{said}: loaded with {odd}"
    return False


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_damaged_file_is_refused_or_right(tmp_path, sound, mutation, pytestconfig):
    faults, refused, count = [], 0, 340 if pytestconfig.getoption("--slow") else 34
    for seed, name in cases(mutation, count):
        try:
            refused += check(tmp_path / "damaged.safetensors", mutation, name, seed, sound)
        except AssertionError as error:
            faults.append(str(error)[:400])
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert refused, "nothing was damaged"


@pytest.mark.parametrize("name", [name for name, door in DOORS.items() if door])
def test_a_block_of_a_huge_number(tmp_path, name):
    """A network of so many blocks would never be made."""
    def huge(path, rng):
        text, data = parts(path)
        return joined(re.sub(rb"(blocks|block|layers)\.1\.", rb"\1.99999999999.", text), data)

    path = tmp_path / "damaged.safetensors"
    path.write_bytes(mutated(MODELS / f"{name}.safetensors", huge, 0))
    with limit(SECONDS), pytest.raises((ValueError, KeyError) if name.endswith("cogvideox_vae") else ValueError):
        read(path, DOORS[name])


def test_the_same_seed_makes_the_same_file():
    path = MODELS / "vae" / "sanacog_tiny_dcae.safetensors"
    for mutation in MUTATIONS:
        assert mutated(path, mutation, 5) == mutated(path, mutation, 5)
        assert len({mutated(path, mutation, seed) for seed in range(8)}) > 1

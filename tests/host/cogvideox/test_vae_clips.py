"""How long clips are cut in time: as in training where it fits, as diffusers does where it does not."""

import logging

import pytest
import torch

from .test_vae import clip, host, latents, path  # noqa: F401
from .video_model import apart


@pytest.fixture
def vae(host, path):
    return host.vae.load_cogvideox_vae(path)


@pytest.fixture
def parts(host, vae):
    """What the networks are given, in pieces of time."""
    seen = []
    hooks = [network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2]))
             for network in (vae.first_stage_model.encoder, vae.first_stage_model.decoder)]
    yield seen
    for hook in hooks:
        hook.remove()


def test_auto_is_as_in_training(host, vae, parts, caplog):
    with caplog.at_level(logging.INFO):
        whole = vae.encode(clip(17))
    assert parts == [17] and "as in training" in caplog.text
    assert apart(vae.encode(clip(17), clips="chunks"), whole) > 1e-3
    assert parts == [17, 9, 8]
    del parts[:]
    vae.decode(latents(25, 1, 1))
    assert parts == [3] * 5 + [2] * 5


def test_chunks_where_it_does_not_fit(host, vae, parts, monkeypatch, caplog):
    shape = (1, 3, 17, 48, 56)
    needed = host.vae.encode_bytes(vae.first_stage_model.params, shape, 4, None, True)
    monkeypatch.setattr(host.vae, "at_best", lambda device: needed - 1)
    found = vae.encode(clip(17, 48, 56))
    assert parts == [9, 8] and "cut into 2 chunks of time" in caplog.text
    assert torch.equal(found, vae.encode(clip(17, 48, 56), clips="chunks"))
    monkeypatch.setattr(host.vae, "at_best", lambda device: needed)
    del parts[:]
    vae.encode(clip(17, 48, 56))
    assert parts == [17]


def test_one_way_or_the_other(host, vae, parts, monkeypatch):
    monkeypatch.setattr(host.vae, "at_best", lambda device: 0)
    vae.clips = "whole"
    vae.encode(clip(17))
    vae.clips = "chunks"
    vae.encode(clip(17))
    assert parts == [17, 9, 8]


def test_when_memory_ran_out_it_is_chunks(host, vae, parts):
    """The host's last resort, which must not take as much as what failed."""
    vae.first_stage_model.whole = True
    vae.encode_tiled_3d(vae.process_input(clip(17).movedim(-1, 0)[None]))
    assert parts == [9, 8]


def test_memory_is_that_of_the_cut(host, vae, parts):
    vae.encode(clip(17))
    whole = vae.memory_used_encode((1, 3, 17, 64, 64), torch.float32)
    vae.encode(clip(17), clips="chunks")
    assert whole > 1.5 * vae.memory_used_encode((1, 3, 17, 64, 64), torch.float32)


def test_a_wrong_name(host, path):
    with pytest.raises(ValueError, match="clips is 'half': choose one of auto, whole, chunks"):
        host.vae.load_cogvideox_vae(path, "half")

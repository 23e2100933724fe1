"""A mask for each frame of a video as one for each latent, and what an edit leaves outside of it."""

import numpy as np
import pytest
import torch

from sanacog.app.graph import shipped
from sanacog.headless.launcher import give_inputs
from sanacog.evaluation.drawn import clip_judge, clips, shapes

from .video_model import host, noise, random, sample, weights  # noqa: F401

LATENT = {"samples": random(2, 16, 3, 4, 6), "other": 1}


@pytest.fixture(scope="module")
def masks(host):  # noqa: F811
    from sanacog.host.cogvideox import masks

    return masks


def by_hand(mask, size):
    """Cells (T, h, w) of a mask (4 T - 3, H, W), pixel by pixel."""
    cells = np.zeros(size)
    for frame, y, x in zip(*np.nonzero(mask.numpy() >= 0.5)):
        cells[(frame + 3) // 4, y // 8, x // 8] = 1
    return torch.from_numpy(cells).float()


def test_whatever_shares_a_cell_is_drawn(masks):
    mask = (torch.rand(9, 32, 48, generator=torch.Generator().manual_seed(1)) > 0.997).float() * 0.8
    found = masks.masked(LATENT, mask)
    assert found["samples"] is LATENT["samples"] and found["other"] == 1 and "noise_mask" not in LATENT
    cells = by_hand(mask, (3, 4, 6))
    assert torch.equal(found["noise_mask"][:, 0], cells) and 0 < cells.mean() < 0.9
    longer = masks.masked(LATENT, torch.cat([mask, mask]))["noise_mask"][:, 0]
    assert torch.equal(longer, cells), "more frames than the video has"
    one = masks.masked(LATENT, mask[2])["noise_mask"][:, 0]
    assert torch.equal(one, by_hand(mask[2:3], (1, 4, 6)).expand(3, -1, -1))


def test_a_mask_of_another_size(masks):
    """It covers the picture, whatever its size."""
    for side in (2, 64):
        mask = torch.zeros(side, side)
        mask[:, side // 2:] = 1.0
        cells = masks.masked(LATENT, mask)["noise_mask"]
        assert cells.shape == (3, 1, 4, 6) and not cells[..., :3].any() and cells[..., 3:].all()


@pytest.mark.parametrize("mask, said", [
    (torch.zeros(32, 48), "The mask is empty"), (torch.ones(5, 32, 48), "mask has 5 frames"),
    (torch.ones(0, 32, 48), "mask is empty|The mask is empty")])
def test_refused(masks, mask, said):
    with pytest.raises(ValueError, match=said):
        masks.masked(LATENT, mask)
    with pytest.raises(ValueError, match="latent is of another model"):
        masks.masked({"samples": random(1, 4, 8, 8)}, torch.ones(64, 64))


def test_the_workflow_changes_what_is_white_and_nothing_else(server):
    """FlowEdit of the embedded model within a mask that moves, laid over the original."""
    workflow = shipped("cogvideox_edit_masked")
    images = {title: key for title, key in ((node["class_type"], key) for key, node in workflow.items())
              if title in ("GetVideoComponents", "VAEDecode", "ImageCompositeMasked")}
    source = next(node["inputs"]["pixels"] for node in workflow.values() if node["class_type"] == "VAEEncode")
    mask = next(node["inputs"]["mask"] for node in workflow.values() if node["class_type"] == "ImageCompositeMasked")
    workflow = {key: node for key, node in workflow.items() if not node["class_type"].startswith("Save")} | {
        "as picture": {"class_type": "MaskToImage", "inputs": {"mask": mask}}}
    shown = {"source": source, "decoded": [images["VAEDecode"], 0], "result": [images["ImageCompositeMasked"], 0],
             "white": ["as picture", 0]}
    workflow |= {name: {"class_type": "PreviewImage", "inputs": {"images": link}} for name, link in shown.items()}
    give_inputs(server.base)
    result = server.run_prompt(workflow)
    frames = {name: np.stack([result.clips[image["filename"]][0] for image in result.outputs[name]["images"]]) / 255.0
              for name in shown}
    white, apart = frames["white"][..., 0] > 0.5, np.abs(frames["result"] - frames["source"]).mean(-1)
    assert white.shape == (9, 96, 96) and 0.05 < white.mean() < 0.4
    assert apart[~white].max() == 0.0
    scene = torch.tensor([[shapes.COLOURS.index("green"), shapes.SHAPES.index("square"), shapes.COLOURS.index("purple"),
                           clips.DIRECTIONS.index("right")]])
    seen = clip_judge.agreement([frames["result"]], scene)
    assert seen["colour"][0] and seen["background"][0] and seen["direction"][0]
    # What the decoder alone leaves: near the source, though more than its own error.
    assert np.abs(frames["decoded"] - frames["source"]).mean(-1)[~white].mean() < 0.06


def test_latents_outside_stay(host, weights, masks):  # noqa: F811
    """A mask that moves, in the sampling."""
    mask = torch.zeros(9, 32, 48)
    for i in range(9):
        mask[i, 8:20, 4 * i:4 * i + 10] = 1.0
    latent = masks.masked({"samples": random(1, 16, 3, 4, 6)}, mask)
    found = sample(host, host.cogvideox.load_cogvideox(weights()), noise(), latent["samples"], mask=latent["noise_mask"])
    changed, white = (found - latent["samples"]).abs().amax(1)[0], latent["noise_mask"][:, 0] > 0
    assert white.any((1, 2)).all() and white[0].sum() < white[1].sum()
    assert changed[~white].max() < 1e-3 < 0.1 < changed[white].min()

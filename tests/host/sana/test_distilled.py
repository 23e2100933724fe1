"""The embedded tiny Sprint, the tiny edge ControlNet and the tiny LoRA in the real host: as good as models/README.md says they are."""

import random
from types import SimpleNamespace

import pytest
import torch

from sanacog.headless import installation
from sanacog.evaluation.drawn import judge, shapes
from sanacog.training.embedded import controlnet, lora, sprint
from sanacog.training.embedded.sana import FILES

from .. import stock, tiny
from ..figures import at_least, measured
from .sana_model import host, sample  # noqa: F401

MODELS = installation.ROOT / "models"
COUNT = 32
CONTROLLED = OUTLINED = 8


@pytest.fixture(scope="module")
def embedded(host):
    return SimpleNamespace(clip=host.text.load_text_encoder(MODELS / FILES["text"]), vae=host.vae.load_dcae(MODELS / FILES["autoencoder"]),
                           sana=host.sana.load_sana(MODELS / FILES["transformer"]))


def spread(count, total=64):
    """`count` case numbers from all over the list."""
    return sorted(random.Random(0).sample(range(total), count))


@pytest.mark.parametrize("steps", [1, 2])
def test_sprint_obeys(host, embedded, steps):
    from sanacog.host.sana.sprint import sample_sprint

    model = host.sana.load_sana(MODELS / sprint.FILE)
    scenes, prompts, _ = shapes.evaluation_scenes()
    chosen = spread(COUNT)
    pictures = []
    for i in chosen:
        positive = host.text.encode_prompt(embedded.clip, prompts[i], False)
        latent = sample_sprint(model, positive, {"samples": torch.zeros(1, 32, 8, 8)}, steps, 4.5, seed=i)["samples"]
        pictures.append(embedded.vae.decode(latent)[0].numpy())
    seen = judge.agreement(pictures, scenes[chosen])
    shares = measured(f"{steps} step{'s' * (steps > 1)}")
    for name in ("colour", "background", "shape", "size"):
        assert sum(seen[name]) >= at_least(shares[name], COUNT), f"{name}: {sum(seen[name])} of {COUNT}, measured {shares[name]}"


@pytest.mark.parametrize("steps, behind", [(1, 0.05), (2, 0.02)])
def test_sprint_is_near_its_teacher(steps, behind):
    """Of all 176 prompts, of a single shape and of several; and in no single thing far from it."""
    teacher, ours = measured("teacher, 20 steps"), measured(f"{steps} step{'s' * (steps > 1)}")
    counts = {"colour+background+shape": 64, "two shapes": 64, "one to three": 48}
    assert sum(count * (teacher[name] - ours[name]) for name, count in counts.items()) <= behind * sum(counts.values())
    assert len(ours) == 10 and all(ours[name] >= 0.87 * teacher[name] for name in ours)


def overlaps(host, embedded, net, chosen):
    """IoU of what is drawn with what was given, whose edges the host's own Canny finds. Without a ControlNet if net is None."""
    import nodes

    scenes, distance = controlnet.cases()
    found = []
    for i in chosen:
        given = (controlnet.paint(scenes[i : i + 1], distance[i : i + 1]).movedim(1, -1) + 1) / 2
        texts = [host.text.encode_prompt(embedded.clip, text, False) for text in (controlnet.bare_prompt(scenes[i]), "")]
        if net is not None:
            edges = stock.run("Canny", given, 0.02, 0.05, module="nodes_canny")
            assert edges.sum() > 600, "Canny has found no outline"
            texts = nodes.ControlNetApplyAdvanced().apply_controlnet(*texts, net, edges, 1.0, 0.0, 1.0, vae=embedded.vae)
        start = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(i))
        latent = sample(host, embedded.sana, positive=texts[0], negative=texts[1], steps=20, start=start)
        drawn = embedded.vae.decode(latent)[0].numpy()
        found.append(judge.overlap(judge.shape_mask(drawn), judge.shape_mask(given[0].numpy())))
    return found


@pytest.mark.parametrize("controlled", [True, False])
def test_the_outline_follows_the_edges(host, embedded, controlled):
    from sanacog.host.sana.control import load_sana_controlnet

    net = load_sana_controlnet(MODELS / controlnet.FILE) if controlled else None
    found = overlaps(host, embedded, net, spread(CONTROLLED, controlnet.CASES))
    follow = sum(overlap > controlnet.WANTED for overlap in found)
    share = measured("with control" if controlled else "without")[f"IoU over {controlnet.WANTED:g}"]
    if controlled:
        assert follow >= at_least(share, CONTROLLED), found
    else:
        assert CONTROLLED - follow >= at_least(1 - share, CONTROLLED), found


def test_the_outline_follows_in_enough_of_the_measured_cases():
    name = f"IoU over {controlnet.WANTED:g}"
    assert measured("with control")[name] >= 0.8 and measured("without")[name] <= 0.2


def with_our_loader(model):
    from sanacog.host.lora import apply_lora

    return apply_lora(MODELS / lora.FILE, model)[0]


def with_the_stock_loader(model):
    import comfy.sd
    import comfy.utils

    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(MODELS / lora.FILE)), 1.0, 0.0)[0]


@pytest.mark.parametrize("load, row", [(with_our_loader, "with the LoRA"), (with_the_stock_loader, "with the LoRA"),
                                       (lambda model: model, "without the LoRA")])
def test_the_lora_draws_outlines(host, embedded, load, row):
    model, found = load(embedded.sana), []
    scenes, prompts, _ = shapes.evaluation_scenes()
    chosen = lora.can_be_outlined(scenes).nonzero()[:OUTLINED, 0].tolist()
    negative = host.text.encode_prompt(embedded.clip, "", False)
    for i in chosen:
        start = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(i))
        positive = host.text.encode_prompt(embedded.clip, prompts[i], False)
        drawn = embedded.vae.decode(sample(host, model, positive=positive, negative=negative, steps=20, start=start))[0]
        found.append(judge.outlined(drawn.numpy(), int(scenes[i, shapes.COLOUR]), int(lora.outline_colours(scenes)[i])))
    share = measured(row)["outlined, in the right colours"]
    if row == "without the LoRA":
        assert not any(found) and share == 0
    else:
        assert sum(found) >= at_least(share, OUTLINED) > 2, f"{sum(found)} of {OUTLINED}, measured {share}"

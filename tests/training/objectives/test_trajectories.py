"""Sprint from its teacher's trajectories: the loss of a student that is right is zero, and the teacher draws as the sampler does."""

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from sanacog.training import config_files, latents, models, recipe, sampling, session
from sanacog.training.objectives.trajectories import HIGHEST, SprintTrajectories

from ..runs import ROOT, pictures

TEACHER = ROOT / "models" / "diffusion_models" / "sanacog_tiny_sana.safetensors"


def batch(count=64):
    g = torch.Generator().manual_seed(1)
    return {"latents": torch.randn(count, 4, 2, 2, generator=g), "noise": torch.randn(count, 4, 2, 2, generator=g),
            "guidance": torch.full((count,), 4.5), "states": torch.randn(count, 3, 8, generator=g), "mask": torch.ones(count, 3)}


class Knowing:
    """A network that knows the latents, and what it was asked."""

    params = SimpleNamespace(timestep_multiplier=1.0)

    def __init__(self, given, off=0.0):
        self.given, self.off, self.asked = given, off, []

    def __call__(self, x, sigma, states, mask, guidance):
        self.asked.append((x, sigma, guidance))
        return (x - self.given["latents"] - self.off) / sigma[:, None, None, None]


def test_the_loss_is_of_the_latent_that_is_named():
    given = batch()
    for off in (0.0, 0.5):
        network = Knowing(given, off)
        losses = SprintTrajectories().losses(network, given, torch.Generator().manual_seed(0))
        assert losses.shape == (64,) and torch.allclose(losses, torch.full((64,), off**2), atol=1e-9)
    x, sigma, guidance = network.asked[0]
    first = sigma == 1
    assert 16 < first.sum() < 48 and torch.equal(x[first], given["noise"][first]) and (guidance == 4.5).all()
    assert sigma[~first].min() >= 0.2 and sigma[~first].max() <= HIGHEST
    at = sigma[~first][:, None, None, None]
    noise = (x[~first] - (1 - at) * given["latents"][~first]) / at
    assert (noise - given["noise"][~first]).abs().amax(dim=(1, 2, 3)).min() > 0.1 and 0.8 < noise.std() < 1.2  # new


def test_held_out_rows_are_measured_at_one_level():
    given = batch(4)
    network = Knowing(given)
    for level in (0.3, 1.0):
        SprintTrajectories().losses_at(network, given, level, torch.Generator().manual_seed(0))
    (_, low, _), (x, high, _) = network.asked
    assert (low == 0.3).all() and (high == 1).all() and torch.equal(x, given["noise"])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = config_files.load(["train/tiny_sprint"], [
        f"data.path={pictures(folder / 'pictures')}", f"output.folder={folder}", f"train.teacher={TEACHER}", "data.batch_size=2",
        "data.buckets=[[64, 64], [64, 96]]", "data.validation=null", "objective.teacher_steps=3", "objective.guidance=[3.0, 4.0, 5.0]",
        "validation.prompts=[]"], environ={})
    found = models.Models(run.config.model)
    return run.config, found, latents.prepare(run.config, found, session.folder_of(run.config), torch.device("cpu"), lambda text: None)


def test_the_teacher_draws_as_the_sampler_does(drawn):
    """Row by row, by the sampler that validation has, from the kept noise and at the kept scale."""
    config, found, data = drawn
    teacher = models.Models(config.model, config.train.teacher)
    network, null = teacher.transformer(torch.float32), data.cache.get(data.null)
    used = int(null["mask"].sum())
    scales = set()
    for sample in data.train:
        entry, text = data.cache.get(sample.latent), data.cache.get(next(iter(sample.texts.values())))
        scales.add(float(entry["guidance"]))

        def clean(x, sigma):
            v, empty = (network(x, sigma.expand(1) * 1000, t["states"][None, :n], t["mask"][None, :n])
                        for t, n in ((text, None), (null, used)))
            return x - sigma * (empty + float(entry["guidance"]) * (v - empty))
        with torch.no_grad():
            z = sampling.sample_flow_dpm_solver(clean, entry["noise"][None], sampling.flow_sigmas(3, 3.0))[0]
        assert (z - entry["latent"]).norm() < 1e-4 * z.norm()
    assert 1 < len(scales) and scales <= {3.0, 4.0, 5.0} and len({s.latent for s in data.train}) == len(data.train)


def test_batches_hold_what_was_drawn_and_pictures_are_not_encoded(drawn):
    config, found, data = drawn
    made = recipe.build(config, found)
    got = latents.BatchDataset(data, made.params, data.batches())[0]
    count = len(got["names"])
    assert got["noise"].shape == got["latents"].shape == (count, 32, *got["latents"].shape[2:]) and got["guidance"].shape == (count,)
    assert {about["kind"] for _, about in data.cache.index()} == {"text", "trajectory"}
    loss = recipe.Loss(made, data.scale)(got, torch.Generator().manual_seed(0))
    assert loss.shape == (count,) and loss.isfinite().all()


def test_the_student_is_shown_on_the_way(drawn):
    """In one step as the embedded Sprint is measured; with new noise between several, the same ones each time."""
    config, found, data = drawn
    network = found.transformer(torch.float32)
    text = data.cache.get(next(iter(data.train[0].texts.values())))
    pair = (text["states"][None], text["mask"][None])

    def shown(steps):
        return sampling.sana(network, found.params, config.sampling, pair, pair, (2, 3), 5, steps, 4.5, torch.device("cpu"))
    noise = torch.randn(1, 32, 2, 3, generator=torch.Generator().manual_seed(5))
    v = network(noise, torch.ones(1), *pair, torch.tensor([4.5]))
    assert (shown(1) - (noise - v)).norm() < 1e-5 * v.norm()
    assert torch.equal(shown(4), shown(4)) and not torch.equal(shown(4), shown(2))


def test_nothing_is_drawn_twice_and_another_teacher_draws_anew(drawn, tmp_path):
    config, found, data = drawn
    told = []
    latents.prepare(config, found, session.folder_of(config), torch.device("cpu"), told.append)
    assert not any("drew" in line for line in told)
    other = tmp_path / "teacher.safetensors"
    tensors = safetensors.torch.load_file(TEACHER)
    with safetensors.safe_open(TEACHER, "pt") as file:
        about = file.metadata()
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + 0.1
    safetensors.torch.save_file(tensors, other, about)
    changed = config.model_copy(update={"train": config.train.model_copy(update={"teacher": str(other)})})
    again = latents.prepare(changed, found, session.folder_of(config), torch.device("cpu"), told.append)
    assert f"the teacher drew {len(data.train)} latents" in told
    assert not {s.latent for s in again.train} & {s.latent for s in data.train}

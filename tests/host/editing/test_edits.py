"""FlowEdit by the paper's equations, and what attention sees with Keep Structure, on random tiny weights."""

import pytest
import torch

from sanacog.cogvideo_core import schedule

from ..cogvideox import video_model
from ..cogvideox.video_model import apart
from .test_inversion import STEPS, euler, host, models, run  # noqa: F401


def flow_edit(host, case, source, target, sampler=None, latent=None, sigmas=None, mask=None, seed=5,  # noqa: F811
              **options):
    guider = host.flow_edit.FlowEdit(case[0], (source, case[3]), (target, case[3]), **options)
    latent = case[1] if latent is None else latent
    sigmas = case[4] if sigmas is None else sigmas
    return guider.sample(torch.zeros_like(latent), latent, sampler or euler(host), sigmas, mask, None, True, seed)


def other(case):
    """Another prompt for the case's model: its negative."""
    return case[3]


@pytest.mark.parametrize("name", ["Sana", "5B", "1.5"])
def test_the_same_prompt_changes_nothing(host, models, name):  # noqa: F811
    case = models(name)
    assert apart(flow_edit(host, case, case[2], case[2], source_cfg=2.0, target_cfg=2.0), case[1]) < 1e-4
    assert apart(flow_edit(host, case, case[2], other(case)), case[1]) > 0.05


@pytest.mark.parametrize("averages", [1, 2])
def test_by_the_papers_equations(host, models, averages):  # noqa: F811
    """A CogVideoX as the flow that it is: velocities noise - clean, in float64 outside of the network."""
    case, params = models("5B"), video_model.VARIANTS["5B"]
    found = flow_edit(host, case, case[2], other(case), source_cfg=1.0, target_cfg=1.0, averages=averages, skip=1, seed=5)
    core = video_model.tinycog.transformer(params)
    alphas = schedule.alphas_cumprod(params.snr_shift_scale)
    times = schedule.trailing_timesteps(STEPS)
    levels = [float((1 - alphas[t]).sqrt() / ((1 - alphas[t]).sqrt() + alphas[t].sqrt())) for t in times] + [0.0]
    source = case[1].double() * params.scaling_factor
    generator = torch.Generator().manual_seed(6)

    def velocity(x, level, timestep, seed):
        root, rest = alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()
        whole = x * (root + rest)
        v = core(whole.float(), torch.tensor([float(timestep)]), video_model.text(seed)[0][0]).double()
        return (rest * whole + root * v) - (root * whole - rest * v)

    z = source.clone()
    for i in range(1, STEPS):
        change = 0.0
        for _ in range(averages):
            noise = torch.randn(source.shape, generator=generator).double()
            x_s = (1 - levels[i]) * source + levels[i] * noise
            change = change + velocity(z + x_s - source, levels[i], times[i], 1) - velocity(x_s, levels[i], times[i], 0)
        z = z + (levels[i + 1] - levels[i]) * change / averages
    assert apart(found, (z / params.scaling_factor).float()) < 2e-3


def test_refine_ends_by_plain_sampling(host, models):  # noqa: F811
    case = models("Sana")
    same = dict(source_cfg=1.0, target_cfg=1.0)
    whole = flow_edit(host, case, case[2], case[2], refine=STEPS, **same)
    assert apart(whole, case[1]) > 0.05  # nothing but a sampling of the target
    assert apart(flow_edit(host, case, case[2], case[2], refine=1, **same), case[1]) < apart(whole, case[1])


def test_outside_the_mask_the_source_stays(host, models):  # noqa: F811
    case = models("Sana")
    mask = torch.zeros(case[1].shape[0], 1, *case[1].shape[2:])
    mask[..., 3:] = 1.0
    found = flow_edit(host, case, case[2], other(case), mask=mask, target_cfg=3.0)
    assert apart(found[..., :3], case[1][..., :3]) < 1e-4 and apart(found[..., 3:], case[1][..., 3:]) > 0.05


@pytest.mark.parametrize("options, said", [
    (dict(skip=STEPS), "more than the 6 steps"), (dict(skip=3, refine=4), "more than the 6 steps"),
    (dict(averages=0), "averages 0")])
def test_flow_edit_refuses(host, models, options, said):  # noqa: F811
    case = models("Sana")
    with pytest.raises(ValueError, match=said):
        flow_edit(host, case, case[2], other(case), **options)
    with pytest.raises(ValueError, match="this latent is empty"):
        flow_edit(host, case, case[2], other(case), latent=torch.zeros_like(case[1]))
    with pytest.raises(ValueError, match="without FlipSigmas"):
        flow_edit(host, case, case[2], other(case), sigmas=case[4].flip(0))


# --- Keep Structure ---


@pytest.mark.parametrize("name", ["Sana", "2B", "5B"])
def test_a_result_that_is_the_source_sees_nothing_new(host, models, name):  # noqa: F811
    """Keys and values twice over change no attention: a first step from the source's own state is as without."""
    case = models(name)
    kept = host.structure.keep_structure(case[0], 0.0, 1.0)
    noise = torch.randn(case[1].shape, generator=torch.Generator().manual_seed(3))
    sigmas = case[4][2:4]
    one = run(host, case, euler(host), noise, 3.0, sigmas=sigmas)
    assert apart(run(host, case, euler(host), noise, 3.0, model=kept, sigmas=sigmas), one) < 1e-4


@pytest.mark.parametrize("name", ["Sana", "5B"])
def test_it_sees_the_source_in_its_part_of_the_sampling(host, models, name):  # noqa: F811
    case = models(name)
    noise = torch.randn(case[1].shape, generator=torch.Generator().manual_seed(3))
    without = run(host, case, euler(host), noise, 3.0)
    found = {part: run(host, case, euler(host), noise, 3.0, model=host.structure.keep_structure(case[0], *part))
             for part in ((0.0, 1.0), (0.0, 0.5), (0.0, 0.0))}
    assert apart(found[0.0, 1.0], without) > 1e-2 and apart(found[0.0, 0.5], found[0.0, 1.0]) > 1e-3
    nothing = run(host, case, euler(host), noise, 3.0, model=host.structure.keep_structure(case[0], 1.0, 1.0))
    assert apart(nothing, without) < 1e-2


def test_attention_of_the_first_half_sees_both(host):  # noqa: F811
    q, k, v = (torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))

    def attend(q, k, v):
        return torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
    found = host.structure.beside(attend, q, k, v)
    assert torch.allclose(found[:2], attend(q[:2], torch.cat([k[:2], k[2:]], 1), torch.cat([v[:2], v[2:]], 1)))
    assert torch.allclose(found[2:], attend(q[2:], k[2:], v[2:]))


def test_keep_structure_refuses(host, models):  # noqa: F811
    case = models("Sana")
    kept = host.structure.keep_structure(case[0], 0.0, 1.0)
    with pytest.raises(ValueError, match="this one is empty"):
        run(host, case, euler(host), torch.ones_like(case[1]), model=kept, latent=torch.zeros_like(case[1]))


def test_an_inversion_is_not_changed_by_keep_structure(host, models):  # noqa: F811
    case = models("5B")
    there = host.inversion.inversion("plain", 1, 0.0)
    kept = host.structure.keep_structure(case[0], 0.0, 1.0)
    assert run(host, case, there, model=kept).equal(run(host, case, there))

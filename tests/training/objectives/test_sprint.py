"""Sprint's objective against the authors' formulas in float64, its tangent against finite differences, and who gets gradients."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sanacog.sana_core import transformer
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.training.objectives import sprint
from sanacog.training.objectives.sprint import Distilled, SprintSCM, start_from

from ...unit.sana_equations import velocity

PARAMS = SanaParams(num_layers=3, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                    caption_channels=24, qk_norm=True, timestep_scale=0.001)
SIGMA_DATA, B = 0.5, 3
H = 1e-6  # of differences in float64: small, as ReLU has corners


def network(params, seed):
    torch.manual_seed(seed)
    model = SanaTransformer(params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model


@pytest.fixture
def both():
    student = network(replace(PARAMS, guidance_embeds=True, timestep_scale=1.0), 0)
    torch.manual_seed(2)
    made = Distilled(student, network(PARAMS, 1), layers=(0, 1))
    torch.nn.init.normal_(made.doubt.weight, std=0.1)
    return made


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(B, 7)
    mask[1, 4:] = 0
    return {"latents": torch.randn(B, 32, 4, 6, generator=g), "states": torch.randn(B, 7, 24, generator=g), "mask": mask,
            "null_states": torch.randn(1, 9, 24, generator=g), "null_mask": torch.tensor([[1.0, 1.0] + [0.0] * 7])}


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def wide(t):
    return t[:, None, None, None]


class Authors:
    """x_t = cos t x0 + sin t z with x0 and z of deviation sigma_data, F(x_t / sigma_data, t), all in float64."""

    def __init__(self, both):
        self.student = {name: tensor.detach().double().requires_grad_() for name, tensor in both.student.state_dict().items()}
        self.teacher = both.teacher.state_dict()
        self.both = both

    def F(self, weights, params, x, t, states, mask, guidance=None):
        s = t.sin() / (t.cos() + t.sin())
        n = (s**2 + (1 - s) ** 2).sqrt()
        x = x * wide(n)
        v = velocity(params, weights, x, s * params.timestep_multiplier, states.double(), mask, guidance)
        return ((1 - 2 * wide(s)) * x + (1 - 2 * wide(s) + 2 * wide(s) ** 2) * v) / wide(n)

    def scm(self, batch, x0, z, t, guidance, r, empty_mask):
        states, mask = batch["states"], batch["mask"]
        length = 7 if empty_mask == "caption" else 9
        null = batch["null_states"][:, :length].expand(B, -1, -1)
        null_mask = mask if empty_mask == "caption" else batch["null_mask"].expand(B, -1)
        x0, z = SIGMA_DATA * x0.double(), SIGMA_DATA * z.double()
        x_t = wide(t.cos()) * x0 + wide(t.sin()) * z
        with torch.no_grad():
            c, u = (SIGMA_DATA * self.F(self.teacher, self.both.teacher.params, x_t / SIGMA_DATA, t, *given)
                    for given in ((states, mask), (null, null_mask)))
            dxt_dt = u + wide(guidance) * (c - u)

            def moved(h):
                step = h * t.cos() * t.sin()
                return self.F(self.student, self.both.student.params, x_t / SIGMA_DATA + wide(step) * dxt_dt / SIGMA_DATA, t + step,
                              states, mask, guidance)
            grad = (moved(H) - moved(-H)) / (2 * H)
        out = self.F(self.student, self.both.student.params, x_t / SIGMA_DATA, t, states, mask, guidance)
        g = -wide(t.cos()) ** 2 * (SIGMA_DATA * out.detach() - dxt_dt)
        g = g - r * (wide(t.cos() * t.sin()) * x_t + SIGMA_DATA * grad)
        g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 0.1)
        logvar = self.logvar(t, guidance)
        weight = 1 / (t.tan() * SIGMA_DATA)
        return (wide(weight / logvar.exp()) * (out - out.detach() - g) ** 2 + wide(logvar)).mean(dim=(1, 2, 3)), out, grad

    def logvar(self, t, guidance):
        s, w = t.sin() / (t.cos() + t.sin()), self.student

        def embed(name, x):
            angles = x[:, None] * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
            x = torch.cat([angles.cos(), angles.sin()], -1)
            x = F.silu(x @ w[f"{name}.linear_1.weight"].T + w[f"{name}.linear_1.bias"])
            return x @ w[f"{name}.linear_2.weight"].T + w[f"{name}.linear_2.bias"]
        embedding = embed("time_embed.timestep_embedder", s) + embed("time_embed.guidance_embedder", guidance * 0.1)
        return (embedding @ self.both.doubt.weight.detach().double().T)[:, 0] + self.both.doubt.bias.detach().double()


@pytest.mark.parametrize("empty_mask, step, scale", [("caption", 1000, 0.001), ("own", 4000, 0.001), ("caption", None, 1.0)])
def test_scm_in_float64(both, batch, empty_mask, step, scale):
    both.teacher.params = replace(PARAMS, timestep_scale=scale)  # 1: one that was not made for Sprint, and counts to 1000
    both.heads, objective = torch.nn.ModuleList(), SprintSCM(empty_mask=empty_mask)
    losses = objective.losses(both, batch, torch.Generator().manual_seed(5), step=step)
    losses.mean().backward()

    g = torch.Generator().manual_seed(5)
    t = torch.atan((0.2 + 1.6 * torch.randn(B, generator=g, dtype=torch.float64)).exp() / 0.5)
    torch.rand(B, generator=g)
    guidance = torch.tensor([4.0, 4.5, 5.0])[torch.randint(3, (B,), generator=g)].double()
    z = torch.randn(batch["latents"].shape, generator=g)
    authors = Authors(both)
    want, _, _ = authors.scm(batch, batch["latents"], z, t, guidance, 0.25 if step == 1000 else 1.0, empty_mask)
    want.mean().backward()
    assert losses.shape == (B,) and losses.dtype == torch.float32
    assert relative(losses, want) < 1e-5
    got, wanted = (torch.cat([tensor.grad.flatten().double() for _, tensor in sorted(named)])
                   for named in (both.student.named_parameters(), authors.student.items()))
    assert relative(got, wanted) < 1e-5


def test_the_tangent_is_the_derivative(both, batch, monkeypatch):
    """In float64 throughout, forward mode against differences."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    monkeypatch.setattr(transformer, "sinusoid", lambda t, channels=256: torch.cat([f(t[:, None] * torch.exp(
        -math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)) for f in (torch.cos, torch.sin)], -1))
    student = both.student.double()
    t, dt = torch.tensor([0.05, 0.8, 1.5], dtype=torch.float64), torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    y, dy = (torch.randn(B, 32, 4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    given = batch["states"].double(), batch["mask"], torch.tensor([4.0, 4.5, 5.0], dtype=torch.float64)
    found, slope = sprint._along(student, y, t, dy, dt, *given)
    with torch.no_grad():
        before, at, after = (sprint.trig(student, y + h * dy, t + h * dt, *given) for h in (-H, 0.0, H))
    assert relative(found, at) < 1e-12
    assert relative(slope, (after - before) / (2 * H)) < 1e-7


def test_the_tangent_in_fp32(both, batch):
    """Where layers have faster forms for the CPU, which lose it."""
    t, given = torch.tensor([0.05, 0.8, 1.5]), (batch["states"], batch["mask"], torch.tensor([4.0, 4.5, 5.0]))
    y, dy, dt = torch.randn(B, 32, 4, 6), torch.randn(B, 32, 4, 6), torch.tensor([1.0, 0.5, 0.1])
    slope = sprint._along(both.student, y, t, dy, dt, *given)[1]
    student, params = both.student.state_dict(), both.student.params
    authors = Authors(both)
    with torch.no_grad():
        after, before = (authors.F(student, params, y.double() + h * dy, t.double() + h * dt, *given) for h in (H, -H))
    assert relative(slope, (after - before) / (2 * H)) < 1e-5


def test_what_a_student_names_is_what_sprint_samples(both, batch):
    """x - sigma v of the flow form that nodes run, for noise and latent as they are."""
    t, noise = torch.tensor([0.3, 1.2, math.pi / 2]), torch.randn(batch["latents"].shape)
    guidance = torch.full((B,), 4.5)
    sigma = wide(t.sin() / (t.sin() + t.cos()))
    x = (1 - sigma) * batch["latents"] + sigma * noise
    with torch.no_grad():
        want = x - sigma * both.student(x, sigma.flatten(), batch["states"], batch["mask"], guidance)
        found = sprint.named(both.student, sprint.mixed(batch["latents"], noise, t), t, guidance, batch["states"], batch["mask"])
    assert relative(found, want) < 1e-5


def test_a_copy_of_its_teacher_has_nothing_to_learn_before_the_warm_up(batch):
    teacher = network(PARAMS, 1)
    made, objective = Distilled(start_from(teacher), teacher, layers=()), SprintSCM(guidance=(1.0,))
    losses = objective.losses(made, batch, torch.Generator().manual_seed(0), step=0)
    assert losses.abs().max() < 1e-9
    assert objective.losses(made, batch, torch.Generator().manual_seed(0), step=4000).min() > 1e-7


def test_validation_is_the_change_along_the_teachers_path(both, batch):
    level, objective = 0.6, SprintSCM()
    found = objective.losses_at(both, batch, level, torch.Generator().manual_seed(3))
    z = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(3)).double()
    t, guidance = torch.full((B,), level * math.pi / 2, dtype=torch.float64), torch.full((B,), 4.5, dtype=torch.float64)
    authors = Authors(both)
    given = batch["states"], batch["mask"]

    def latent(x, t):
        found = authors.F(authors.student, both.student.params, x / SIGMA_DATA, t, *given, guidance)
        return wide(t.cos()) * x - wide(t.sin()) * SIGMA_DATA * found
    with torch.no_grad():
        x = SIGMA_DATA * (wide(t.cos()) * batch["latents"].double() + wide(t.sin()) * z)
        null = batch["null_states"][:, :7].expand(B, -1, -1), batch["mask"]
        c, u = (SIGMA_DATA * authors.F(authors.teacher, both.teacher.params, x / SIGMA_DATA, t, *text) for text in (given, null))
        path = u + 4.5 * (c - u)
        change = (latent(x + H * path, t + H) - latent(x - H * path, t - H)) / (2 * H)
    assert relative(found, change.square().mean(dim=(1, 2, 3))) < 1e-5
    assert not found.requires_grad


def given_gradients(module):
    return [name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0]


def test_each_step_trains_one_side(both, batch):
    objective = SprintSCM()
    objective.losses(both, batch, torch.Generator().manual_seed(0), step=2).mean().backward()
    assert given_gradients(both.student)
    assert not any(p.grad is not None for p in [*both.heads.parameters(), *both.teacher.parameters()])
    both.zero_grad(set_to_none=True)
    objective.losses(both, batch, torch.Generator().manual_seed(0), step=3).mean().backward()
    assert all(p.grad is not None for p in both.heads.parameters()) and len(given_gradients(both.heads)) > 16
    assert not any(p.grad is not None for p in [*both.student.parameters(), *both.teacher.parameters()])
    assert all(p.requires_grad for p in both.heads.parameters())


def test_heads_rest_in_the_students_steps(both, batch):
    def kept():
        return torch.cat([buffer.flatten().clone() for buffer in both.heads.buffers()])
    start = kept()
    SprintSCM().losses(both, batch, torch.Generator().manual_seed(0), step=0)
    assert torch.equal(kept(), start)
    SprintSCM().losses(both, batch, torch.Generator().manual_seed(0), step=1)
    assert not torch.equal(kept(), start)


def test_warm_up_counts_the_students_steps(both, batch, monkeypatch):
    seen = []

    def losses(self, network, batch, y, t, guidance, warm):
        seen.append(warm)
        return t
    monkeypatch.setattr(SprintSCM, "student_losses", losses)
    for weight, step in ((0.5, 1000), (0.0, 1000), (0.5, 8000), (0.0, 9000), (0.5, None)):
        SprintSCM(adversarial=weight).losses(both, batch, torch.Generator().manual_seed(0), step=step)
    assert seen == [0.125, 0.25, 1.0, 1.0, 1.0]


def test_the_students_verdict_is_a_part_of_its_loss(both, batch):
    """Its gradient comes through the frozen teacher and heads."""
    plain, judged = (SprintSCM(adversarial=weight).losses(both, batch, torch.Generator().manual_seed(0), step=0)
                     for weight in (0.0, 2.0))
    verdict = (plain - judged) / 2.0
    g = torch.Generator().manual_seed(0)
    torch.randn(B, generator=g, dtype=torch.float64), torch.rand(B, generator=g)  # what sCM draws
    guidance = torch.tensor([4.0, 4.5, 5.0])[torch.randint(3, (B,), generator=g)]
    torch.randn(batch["latents"].shape, generator=g)
    t = torch.atan((0.2 + 1.6 * torch.randn(B, generator=g, dtype=torch.float64)).exp() / 0.5).float()
    start = torch.rand(B, generator=g) < 0.5
    assert 0 < start.sum() < B
    t = torch.where(start, math.pi / 2, t)
    y = sprint.mixed(batch["latents"], torch.randn(batch["latents"].shape, generator=g), t)
    fake = sprint.named(both.student, y, t, guidance, batch["states"], batch["mask"])
    at = torch.atan((-0.6 + torch.randn(B, generator=g, dtype=torch.float64)).exp() / 0.5).float()
    seen = sprint.mixed(fake, torch.randn(fake.shape, generator=g), at)
    want = both.verdicts(seen, at, batch["states"], batch["mask"], trained=False).mean(dim=1)
    assert relative(verdict, want) < 1e-4
    got, wanted = (torch.autograd.grad(part.sum(), both.student.proj_out.weight)[0] for part in (verdict, want))
    assert relative(got, wanted) < 1e-4


def test_hinge_on_true_false_and_misaligned(both, batch, monkeypatch):
    """With verdicts that are the mean of what is seen, so that each one can be told by hand."""
    calls = []

    def verdicts(self, y, t, states, mask, trained):
        calls.append((y.detach(), t, trained))
        return y.mean(dim=(1, 2, 3))[:, None].expand(-1, 5)
    monkeypatch.setattr(Distilled, "verdicts", verdicts)
    found = SprintSCM().discriminator_losses(both, batch, torch.Generator().manual_seed(0))
    (true, at, _), (false, same, _), (strange, other, _) = calls
    assert torch.equal(at, same) and not torch.equal(at, other) and all(trained for *_, trained in calls)

    def hinge(sign, y):
        return (1 + sign * y.mean(dim=(1, 2, 3))).clamp(min=0)
    want = 0.5 * (hinge(-1, true) + 0.5 * (hinge(1, false) + hinge(1, strange)))
    assert relative(found, want) < 1e-6
    # y less the noise is the latent of the row before.
    off = [(strange - wide(other.cos()) * batch["latents"].roll(shift, 0)) / wide(other.sin()) for shift in (1, 0)]
    assert abs(off[0].std() - 1) < 0.05 and abs(off[1].std() - 1) > 0.1
    calls.clear()
    SprintSCM().discriminator_losses(both, {name: value[:1] for name, value in batch.items()}, torch.Generator().manual_seed(0))
    assert len(calls) == 2


def test_heads_see_the_teachers_blocks(both, batch):
    features = []
    hooks = [both.teacher.transformer_blocks[i].register_forward_hook(lambda module, given, out: features.append(out))
             for i in both.layers]
    t = torch.tensor([0.2, 0.7, 1.5])
    y = torch.randn(batch["latents"].shape)
    both.heads.eval()
    found = both.verdicts(y, t, batch["states"], batch["mask"], trained=False)
    assert found.shape == (B, 2 * 24) and len(features) == 2
    features.clear()
    sprint.trig(both.teacher, y, t, batch["states"], batch["mask"])
    assert len(features) == 2
    assert torch.equal(found, torch.cat([head(x) for head, x in zip(both.heads, features)], dim=1))
    with torch.no_grad():
        for _ in range(300):  # until training's power iteration changes nothing
            both.heads.train()[0](features[0])
        # Whoever stands beside it.
        assert torch.allclose(both.heads[0](features[0][1:2]), both.heads[0](features[0])[1:2], atol=1e-3)
    for hook in hooks:
        hook.remove()


def test_autocast_does_not_keep_casts_without_gradients(both, batch):
    objective = SprintSCM(adversarial=0.0)
    gradients = []
    for low in (False, True):
        both.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            losses = objective.losses(both, batch, torch.Generator().manual_seed(1), step=0)
        losses.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in both.student.parameters()]))
    assert relative(gradients[1], gradients[0]) < 0.2


def test_a_step_without_numbers(both, batch):
    """On the meta device, where memory is counted before training."""
    given = {name: tensor.to("meta") for name, tensor in batch.items()}
    for step in (0, 1):
        losses = SprintSCM().losses(both.to("meta"), given, torch.Generator(), step=step)
        losses.sum().backward()
        assert losses.is_meta and losses.shape == (B,)


MEAN, DEVIATION = 0.7, 0.4  # of latents whose flow is known


class Known(torch.nn.Module):
    """The flow of latents that are normal."""

    params = SimpleNamespace(num_layers=0, width=8, timestep_multiplier=1.0)

    def forward(self, x, sigma, states, mask, guidance=None, **how):
        sigma = wide(sigma)
        off, variance = x - (1 - sigma) * MEAN, ((1 - sigma) * DEVIATION) ** 2 + sigma**2
        return sigma * off / variance - MEAN - (1 - sigma) * DEVIATION**2 * off / variance


class Small(torch.nn.Module):
    params = SimpleNamespace(num_layers=0, width=8, timestep_multiplier=1.0, guidance_embeds=True)

    def __init__(self):
        super().__init__()
        sizes = (2, 64), (64, 64)
        self.layers = torch.nn.Sequential(*(part for size in sizes for part in (torch.nn.Linear(*size), torch.nn.SiLU())),
                                          torch.nn.Linear(64, 1))
        self.time = torch.nn.Linear(1, 8)

    def time_embed(self, level, guidance, dtype):
        return None, self.time(level[:, None]).tanh()

    def forward(self, x, sigma, states, mask, guidance=None, **how):
        return self.layers(torch.stack([x, wide(sigma).expand_as(x)], dim=-1))[..., 0]


def test_a_student_learns_the_whole_way_in_one_step():
    """From random weights, what the teacher's path makes of pure noise: mean + deviation * noise. A student that learnt the
    teacher's own guess of the latent would name the mean, an error of 1."""
    torch.manual_seed(0)
    made, objective = Distilled(Small(), Known(), ()), SprintSCM(tangent_warmup=100)
    fit, steps = torch.optim.Adam(made.parameters(), lr=2e-3), 250
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        fit.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        one = torch.ones(64, 1, 1)
        batch = {"latents": MEAN + DEVIATION * torch.randn(64, 1, 4, 4, generator=g), "states": one, "mask": one[:, 0],
                 "null_states": one[:1], "null_mask": one[:1, 0]}
        loss = objective.losses(made, batch, g, step=step).mean()
        fit.zero_grad()
        loss.backward()
        fit.step()
    y = torch.randn(512, 1, 4, 4)
    with torch.no_grad():
        found = sprint.named(made.student, y, torch.full((512,), math.pi / 2), None, None, None)
    assert (found - MEAN - DEVIATION * y).norm() / (DEVIATION * y).norm() < 0.5


def test_start_from_a_teacher():
    for scale, bound in ((0.001, 1e-6), (1.0, 3e-3)):
        teacher = network(replace(PARAMS, timestep_scale=scale), 1)
        if scale == 1.0:  # as training makes it: what it says changes slowly from one timestep to the next
            with torch.no_grad():
                first = teacher.time_embed.emb.timestep_embedder.linear_1.weight
                first[:, torch.exp(-math.log(10000) * torch.arange(128) / 128).repeat(2) > 0.005] = 0
        student = start_from(teacher)
        assert student.params.guidance_embeds and student.params.timestep_multiplier == 1 and student.params.qk_norm
        g = torch.Generator().manual_seed(0)
        x, states, mask = torch.randn(4, 32, 4, 6, generator=g), torch.randn(4, 7, 24, generator=g), torch.ones(4, 7)
        sigma = torch.tensor([0.999, 0.7, 0.4, 0.1])
        with torch.no_grad():
            want = teacher(x, sigma * teacher.params.timestep_multiplier, states, mask)
            found = student(x, sigma, states, mask, torch.tensor([4.0, 4.5, 5.0, 1.0]))
        assert relative(found, want) < bound
    out = student.time_embed.guidance_embedder
    student(x, sigma, states, mask, torch.full((4,), 4.5)).square().mean().backward()
    assert out.linear_2.weight.grad.abs().max() > 0  # it can begin to count
    with pytest.raises(ValueError, match="is a Sprint network itself"):
        start_from(student)


def test_refusals(both):
    with pytest.raises(ValueError, match="names 3, 8: this teacher has the blocks 0 to 2"):
        Distilled(both.student, both.teacher, (1, 3, 8))
    with pytest.raises(ValueError, match="no guidance embedding"):
        Distilled(both.teacher, both.teacher, ())

"""Sprint's objective: a teacher's guided flow distilled to few steps (sCM), with a discriminator on the teacher's features (LADD).

Times are angles t from 0 to pi / 2: y = cos t * latent + sin t * noise, and the network's answer F(y, t) names the latent as
cos t * y - sin t * F. A flow network gives F after a change of variables (`trig`). A consistent student names one latent along
each path dy = D dt of the teacher, so its loss is the change that it still makes there (the tangent), pulled to zero.
Source: arXiv 2503.09641 and 2410.11081; NVlabs/Sana's train_scm_ladd.py, as summed up in facts/training.md 1.3. Two things
differ on purpose: the heads are normalised row by row, so that a row's loss does not depend on its neighbours, and the weighting
starts even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ...kernels.glumbconv import gating
from ...kernels.linear_attention import eager
from ...kernels.products import multiplying
from ...sana_core.transformer import LINEAR_EPS, SanaTransformer, sinusoid
from .sana import with_empty

NOISE = math.pi / 2  # the time of pure noise
TANGENT_FLOOR = 0.1  # added to a tangent's norm before it is divided by that
STEEP, RIDGE = 40.0, 1e-4  # of the time embedding of a student whose teacher counts to 1000: slopes over sigma, and how tame it is


@dataclass(frozen=True)
class SprintSCM:
    """sigma_data: standard deviation that latents are scaled to. time_mean, time_std: of log(tan t * sigma_data). guidance: scales
    of which each row draws one. tangent_warmup: steps in which the tangent's unstable part grows to full size. empty_mask: as
    SanaFlow's, for the teacher's guidance. adversarial: weight of the discriminator's verdict; discriminator_mean,
    discriminator_std: as time_mean and time_std, of the noise on what it sees; max_time_share: share of the rows it judges that
    start at pure noise. No caption is dropped."""

    sigma_data: float = 0.5
    time_mean: float = 0.2
    time_std: float = 1.6
    guidance: tuple[float, ...] = (4.0, 4.5, 5.0)
    tangent_warmup: int = 4000
    empty_mask: str = "caption"
    adversarial: float = 0.5
    discriminator_mean: float = -0.6
    discriminator_std: float = 1.0
    max_time_share: float = 0.5

    def losses(self, network: Distilled, batch: dict, generator: torch.Generator, step: int | None = None) -> torch.Tensor:
        """(B,): batch as for SanaFlow. Where there is a discriminator, even steps train the student and odd ones the heads: the
        other side gets no gradients. step None: the student, its warm-up over."""
        judged = self.adversarial > 0 and len(network.heads) > 0
        if judged and step is not None and step % 2:
            return self.discriminator_losses(network, batch, generator)
        warm = 1.0 if step is None else min(1.0, (step // 2 if judged else step) / self.tangent_warmup)
        latents, states, mask = batch["latents"].float(), batch["states"], batch["mask"]
        y, t, guidance = self._start(latents, generator, 0.0)
        loss = self.student_losses(network, batch, y, t, guidance, warm)
        if judged:
            fake = named(network.student, *self._start(latents, generator, self.max_time_share, guidance), states, mask)
            seen, at = self._disturbed(fake, generator)
            loss = loss - self.adversarial * network.verdicts(seen, at, states, mask, trained=False).mean(dim=1)
        return loss

    def student_losses(self, network: Distilled, batch: dict, y, t, guidance, warm: float) -> torch.Tensor:
        """(B,) of sCM at y (B, C, h, w), times t and guidance scales (B,); warm: share of the tangent's unstable part."""
        states, mask, wide = batch["states"], batch["mask"], t[:, None, None, None]
        cos, sin = wide.cos(), wide.sin()
        path = self._path(network.teacher, batch, y, t, guidance)
        _, slope = _along(network.student, y, t, cos * sin * path, (cos * sin).flatten(), states, mask, guidance)
        found = trig(network.student, y, t, states, mask, guidance)
        fixed = found.detach()
        tangent = -self.sigma_data * (cos.square() * (fixed - path) + warm * (cos * sin * y + slope))
        tangent = tangent / (tangent.flatten(1).norm(dim=1)[:, None, None, None] + TANGENT_FLOOR)
        error = (found - fixed - tangent).square().mean(dim=(1, 2, 3))
        doubt = network.doubts(t, guidance)
        return error / (t.tan() * self.sigma_data) / doubt.exp() + doubt

    def discriminator_losses(self, network: Distilled, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """(B,): hinge loss of the heads on the row's latent, on the student's, and on the latent of the row before it, which does
        not belong to the caption."""
        latents, states, mask = batch["latents"].float(), batch["states"], batch["mask"]
        with torch.no_grad():
            fake = named(network.student, *self._start(latents, generator, self.max_time_share), states, mask)
        seen, at = self._disturbed(fake, generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        true = mixed(latents, noise, at)

        def verdicts(seen, at):
            return network.verdicts(seen, at, states, mask, trained=True)
        right = F.relu(1 - verdicts(true, at)).mean(dim=1)
        wrong = F.relu(1 + verdicts(seen, at)).mean(dim=1)
        if len(latents) > 1:
            strange = verdicts(*self._disturbed(latents.roll(1, 0), generator))
            wrong = (wrong + F.relu(1 + strange).mean(dim=1)) / 2
        return (right + wrong) / 2

    @torch.no_grad()
    def losses_at(self, network: Distilled, batch: dict, level: float, generator: torch.Generator) -> torch.Tensor:
        """(B,) at one time, `level` of the way to pi / 2, and the middle guidance scale: mean square of the change of the latent
        that the student names along the teacher's path, over dt. It is zero for a perfect student, whatever the data."""
        latents = batch["latents"].float()
        t = latents.new_full((len(latents),), level * NOISE)
        guidance = latents.new_full((len(latents),), sorted(self.guidance)[len(self.guidance) // 2])
        y = mixed(latents, torch.randn(latents.shape, generator=generator).to(latents), t)
        path = self._path(network.teacher, batch, y, t, guidance)
        found, slope = _along(network.student, y, t, path, torch.ones_like(t), batch["states"], batch["mask"], guidance)
        cos, sin = (f(t)[:, None, None, None] for f in (torch.cos, torch.sin))
        return (self.sigma_data * (cos * (path - found) - sin * (y + slope))).square().mean(dim=(1, 2, 3))

    def times(self, count: int, mean: float, deviation: float, generator: torch.Generator) -> torch.Tensor:
        """(count,) in fp32, from 0 to pi / 2."""
        drawn = mean + deviation * torch.randn(count, generator=generator, dtype=torch.float64)
        return torch.atan(drawn.exp() / self.sigma_data).float()

    def _start(self, latents, generator, share, guidance=None):
        """y, t and guidance of rows for the student, `share` of them at pure noise."""
        count = len(latents)
        t = self.times(count, self.time_mean, self.time_std, generator)
        t = torch.where(torch.rand(count, generator=generator) < share, NOISE, t).to(latents)
        if guidance is None:
            chosen = torch.randint(len(self.guidance), (count,), generator=generator)
            guidance = torch.tensor(self.guidance)[chosen].to(latents)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return mixed(latents, noise, t), t, guidance

    def _disturbed(self, latents, generator):
        """Latents under noise as the discriminator sees them, and the times of it."""
        t = self.times(len(latents), self.discriminator_mean, self.discriminator_std, generator).to(latents)
        return mixed(latents, torch.randn(latents.shape, generator=generator).to(latents), t), t

    @torch.no_grad()
    def _path(self, teacher, batch, y, t, guidance):
        """dy / dt of the guided teacher at y."""
        everyone = torch.ones(len(y), dtype=torch.bool)
        empty = trig(teacher, y, t, *with_empty(batch, everyone, self.empty_mask))
        return torch.lerp(empty, trig(teacher, y, t, batch["states"], batch["mask"]), guidance[:, None, None, None])


class Distilled(nn.Module):
    """Student, frozen teacher, the student's doubt by time, and the discriminator's heads on the teacher's blocks `layers` (none:
    no discriminator). Raises ValueError for a student that takes no guidance, and for layers that the teacher lacks."""

    def __init__(self, student: SanaTransformer, teacher: SanaTransformer, layers: tuple[int, ...] = (2, 8, 14, 19)):
        super().__init__()
        depth, width = teacher.params.num_layers, teacher.params.width
        if not student.params.guidance_embeds:
            raise ValueError("The student is no Sprint network: it has no guidance embedding. Make it of the teacher by start_from.")
        if missing := [layer for layer in layers if not 0 <= layer < depth]:
            raise ValueError(f"objective.discriminator_layers names {', '.join(map(str, missing))}: this teacher has the blocks 0 to "
                             f"{depth - 1}.")
        self.student, self.teacher = with_plain_layers(student), teacher.requires_grad_(False)
        self.layers = tuple(sorted(set(layers)))
        self.doubt = nn.Linear(width, 1)
        nn.init.zeros_(self.doubt.weight)
        nn.init.zeros_(self.doubt.bias)
        self.heads = nn.ModuleList([Head(width) for _ in self.layers])

    def doubts(self, t: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Log of the variance that the loss is weighted by, (B,), for times and guidance scales (B,)."""
        embedding = self.student.time_embed(flow_level(t) * self.student.params.timestep_multiplier, guidance, t.dtype)[1]
        return self.doubt(embedding)[:, 0].to(t.dtype)

    def verdicts(self, y, t, states, mask, trained: bool) -> torch.Tensor:
        """(B, layers * N): how true the heads find y (B, C, h, w) at times t (B,), token by token. trained: whether gradients go to
        the heads; to y they go either way."""
        features = {}

        def run_block(i, call, x, context, modulation):
            if i > self.layers[-1]:
                return x, context  # nobody looks at what comes after
            x, context = call(x, context, modulation)
            if i in self.layers:
                features[i] = x
            return x, context
        trig(self.teacher, y, t, states, mask, run_block=run_block)
        self.heads.train(trained).requires_grad_(trained)
        try:
            return torch.cat([head(features[i]) for head, i in zip(self.heads, self.layers)], dim=1)
        finally:
            self.heads.requires_grad_(True)


def with_plain_layers(network: nn.Module) -> nn.Module:
    """The same network, its layers PyTorch's own again: faster ones work where no gradient is wanted, and have no derivative in
    forward mode, which comes out as zero."""
    own = {multiplying(nn.Linear): nn.Linear, gating(nn.Conv2d): nn.Conv2d}
    for module in network.modules():
        module.__class__ = own.get(type(module), type(module))
    return network


class Head(nn.Module):
    """Tokens (B, N, D) -> verdicts (B, N): convolutions along the tokens with spectral norm. Source: LADD's, arXiv 2403.12015."""

    def __init__(self, width: int):
        super().__init__()

        def layer(size):
            conv = nn.Conv1d(width, width, size, padding=size // 2, padding_mode="circular")
            return nn.Sequential(spectral_norm(conv), nn.GroupNorm(1, width), nn.LeakyReLU(0.2))
        self.narrow, self.broad, self.out = layer(1), layer(9), spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, x):
        x = self.narrow(x.transpose(1, 2))
        return self.out((x + self.broad(x)) / math.sqrt(2))[:, 0]


def mixed(latents, noise, t):
    """y at times t (B,)."""
    wide = t[:, None, None, None]
    return wide.cos() * latents + wide.sin() * noise


def flow_level(t: torch.Tensor) -> torch.Tensor:
    """Sigma of a flow at a time."""
    return t.sin() / (t.sin() + t.cos())


def trig(network, y, t, states, mask, guidance=None, **how):
    """F of a flow network at y (B, C, h, w) and times t (B,), in y's type where it is fp32. how: for SanaTransformer.forward."""
    sigma = flow_level(t)
    wide = sigma[:, None, None, None]
    length = (wide.square() + (1 - wide).square()).sqrt()
    x = y * length
    v = network(x, sigma * network.params.timestep_multiplier, states, mask, guidance, **how)
    return ((1 - 2 * wide) * x + (1 - 2 * wide + 2 * wide.square()) * v) / length


def named(student, y, t, guidance, states, mask):
    """The latent that the student names."""
    wide = t[:, None, None, None]
    return wide.cos() * y - wide.sin() * trig(student, y, t, states, mask, guidance)


@torch.no_grad()
def _along(student, y, t, dy, dt, states, mask, guidance):
    """F at y and t, and its change along (dy, dt), by one forward-mode derivative; attention is plain, as no fused one has that."""
    plain = {i: _linear_attention for i in range(student.params.num_layers)}
    return torch.func.jvp(lambda y, t: trig(student, y, t, states, mask, guidance, attention=_attention, self_attention=plain),
                          (y, t), (dy, dt))


def _attention(q, k, v, heads, mask=None):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return ((scores if mask is None else scores + mask).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def _linear_attention(q, k, v, heads):
    return eager(*(part.unflatten(-1, (heads, -1)) for part in (q, k, v)), LINEAR_EPS).flatten(2)


def start_from(teacher: SanaTransformer) -> SanaTransformer:
    """A student, in fp32, with the teacher's weights, whose guidance adds nothing yet. Of a teacher of Sprint's, which is given
    sigma as the student is, it is an exact copy; where the teacher counts to 1000, the time embedding is fitted to say the same.
    Raises ValueError for a teacher that is a Sprint network itself."""
    params = teacher.params
    if params.guidance_embeds:
        raise ValueError("train.teacher is a Sprint network itself: take the model it was distilled from, such as "
                         "Sana_Sprint_1.6B_1024px_teacher or any Sana 1.5.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = SanaTransformer(replace(params, guidance_embeds=True, timestep_scale=1.0))
    tensors = {name.replace("time_embed.emb.", "time_embed."): tensor for name, tensor in teacher.state_dict().items()}
    embed = student.time_embed
    if params.timestep_multiplier != 1.0:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("time_embed.timestep_embedder.")}
    left = student.load_state_dict(tensors, strict=False)
    if left.unexpected_keys:  # the scales of 8-bit weights, for one
        raise ValueError(f"The teacher holds {', '.join(left.unexpected_keys[:4])}, which no student has a place for: a student starts "
                         "from plain weights. Take model.quantize none.")
    nn.init.zeros_(embed.guidance_embedder.linear_2.weight)
    nn.init.zeros_(embed.guidance_embedder.linear_2.bias)
    student = student.to(teacher.proj_out.weight.device)
    if params.timestep_multiplier != 1.0:
        _fit_times(embed, teacher)
    return student.train()


@torch.no_grad()
def _fit_times(embed, teacher):
    """Make a student's time embedding, which is given sigma, say what the teacher's says of 1000 sigma, but for what changes from
    one timestep to the next. Its first layer gets ramps that begin all along sigma, the second fits the teacher to them (ridge)."""
    sigma = torch.linspace(0, 1, 1001, dtype=torch.float64)
    place = teacher.proj_out.weight
    wanted = teacher.time_embed((1000 * sigma).to(place.device), None, place.dtype)[1].double().cpu()
    first, second = embed.timestep_embedder.linear_1, embed.timestep_embedder.linear_2

    def with_one(x):
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    codes = with_one(sinusoid(sigma, first.in_features).double())
    line = torch.linalg.pinv(codes, rtol=1e-5) @ sigma  # sigma from the codes that the layer is given
    generator = torch.Generator().manual_seed(0)
    slope, start = STEEP * torch.randn(first.out_features, generator=generator), torch.rand(first.out_features, generator=generator)
    first.weight.copy_(slope[:, None] * line[:-1])
    first.bias.copy_(slope * (line[-1] - start))
    ramps = with_one(F.silu(F.linear(codes[:, :-1], first.weight.double().cpu(), first.bias.double().cpu())))
    gram = ramps.T @ ramps + RIDGE * len(sigma) * torch.eye(ramps.shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(gram, ramps.T @ wanted)
    second.weight.copy_(fitted[:-1].T)
    second.bias.copy_(fitted[-1])

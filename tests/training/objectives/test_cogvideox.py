"""CogVideoX' objective against the authors' weighted form in float64, and diffusers' scheduler and network."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import CogVideoXDDIMScheduler

from sanacog.cogvideo_core import checkpoint, schedule
from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import OUT_NORM_EPS, CogVideoTransformer
from sanacog.training.objectives.cogvideox import CogVideoXV, filled, noisy_picture, sample_posterior

from ...parity.test_cogvideo_transformer import VARIANTS, pair, reference

PARAMS = CogVideoParams(num_layers=2, num_attention_heads=2, time_embed_dim=32, text_embed_dim=24, max_text_seq_length=6,
                        use_rotary_positional_embeddings=False, spatial_interpolation_scale=1.0)


def network(params):
    torch.manual_seed(0)
    model = CogVideoTransformer(params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return {"latents": torch.randn(2, 16, 3, 4, 6, generator=g), "states": torch.randn(2, 6, 24, generator=g),
            "null_states": torch.randn(1, 6, 24, generator=g)}


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_authors_weighted_form_at_every_timestep(shift):
    """w |x0 - x0'|^2 with w = 1 / (1 - alpha) and x0' = sqrt(alpha) x - sqrt(1 - alpha) F."""
    g = torch.Generator().manual_seed(0)
    x0, noise, out = (torch.randn(1000, 8, dtype=torch.float64, generator=g) for _ in range(3))
    alpha = schedule.alphas_cumprod(shift)[:, None]
    x = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    authors = ((alpha.sqrt() * x - (1 - alpha).sqrt() * out - x0).square() / (1 - alpha)).mean(dim=1)
    ours = (out - (alpha.sqrt() * noise - (1 - alpha).sqrt() * x0)).square().mean(dim=1)
    assert (authors - ours).abs().max() < 1e-12


@pytest.mark.parametrize("variant", ["2B", "image", "1.5"])
def test_equations_in_float64(batch, variant):
    params = {"2B": PARAMS, "image": replace(PARAMS, in_channels=32, conditioning="image"),
              "1.5": replace(PARAMS, patch_size_t=2, use_rotary_positional_embeddings=True)}[variant]
    if variant == "image":
        batch["image"] = torch.randn(2, 16, 1, 4, 6)
    objective = CogVideoXV(3.0, params.patch_size_t, caption_dropout=0.5, image_dropout=0.5)
    model, exact = network(params), network(params).double()
    losses = objective.losses(model, batch, torch.Generator().manual_seed(6))
    losses.mean().backward()

    g = torch.Generator().manual_seed(6)
    timestep = torch.randint(1000, (2,), generator=g)
    dropped, blind = (torch.rand(2, generator=g) < 0.5 for _ in range(2))
    x0 = batch["latents"].double()
    if variant == "1.5":
        x0 = torch.cat([x0[:, :, :1], x0], dim=2)
    noise = torch.randn(x0.shape, generator=g).double()
    a = schedule.alphas_cumprod(3.0)[timestep][:, None, None, None, None]
    x = a.sqrt() * x0 + (1 - a).sqrt() * noise
    states = torch.stack([(batch["null_states"][0] if d else s) for d, s in zip(dropped, batch["states"])]).double()
    if variant == "image":
        image = torch.zeros_like(x0)
        image[:, :, :1] = batch["image"].double() * (~blind)[:, None, None, None, None]
        x = torch.cat([x, image], dim=1)
    want = (exact(x, timestep, states) - (a.sqrt() * noise - (1 - a).sqrt() * x0)).square().mean(dim=(1, 2, 3, 4))
    want.mean().backward()
    assert relative(losses, want) < 1e-6
    got, wanted = (torch.cat([p.grad.double().flatten() for p in m.parameters()]) for m in (model, exact))
    assert relative(got, wanted) < 1e-5


def test_diffusers_network_and_scheduler(batch):
    diffusers = pytest.importorskip("diffusers")
    model = network(PARAMS)
    theirs = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, num_layers=2, time_embed_dim=32, text_embed_dim=24, max_text_seq_length=6, sample_width=90,
        sample_height=60, sample_frames=49, spatial_interpolation_scale=1.0)
    theirs.load_state_dict(checkpoint.from_canonical(model.state_dict(), "diffusers"))
    theirs.norm_out.norm.eps = OUT_NORM_EPS  # ours is the authors'
    scheduler = diffusers.CogVideoXDPMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True, beta_start=0.00085, beta_end=0.012,
                                                beta_schedule="scaled_linear", prediction_type="v_prediction")
    for level in (0.2, 1.0):
        model.zero_grad()
        theirs.zero_grad()
        losses = CogVideoXV(3.0).losses_at(model, batch, level, torch.Generator().manual_seed(2))
        losses.mean().backward()
        timestep = torch.full((2,), round(level * 999))
        noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(2))
        x = scheduler.add_noise(batch["latents"], noise, timestep)
        v = theirs(x.transpose(1, 2), batch["states"], timestep).sample.transpose(1, 2)
        wanted = scheduler.get_velocity(batch["latents"], noise, timestep)
        want = F.mse_loss(v, wanted, reduction="none").mean(dim=(1, 2, 3, 4))
        want.mean().backward()
        assert relative(losses, want) < 1e-6
        named = checkpoint.to_canonical({name: p.grad for name, p in theirs.named_parameters()}, "diffusers")
        assert relative(torch.cat([p.grad.flatten() for _, p in model.named_parameters()]),
                        torch.cat([named[name].flatten() for name, _ in model.named_parameters()])) < 1e-5


@pytest.mark.parametrize("variant, frames", [("5B", 3), ("5B-I2V", 13), ("1.5-5B", 3), ("1.5-5B-I2V", 3)])
def test_diffusers_networks_of_all_variants(variant, frames):
    """Odd clips of 1.5 with the first latent repeated in front, where the start picture stands too, and ofs 2."""
    height, width = 8, 10
    changes = VARIANTS[variant] | (dict(sample_height=height, sample_width=width) if frames == 13 else {})
    ours, theirs = pair(**changes)
    g = torch.Generator().manual_seed(1)
    batch = {"latents": torch.randn(2, 16, frames, height, width, generator=g), "states": torch.randn(2, 10, 24, generator=g)}
    if "I2V" in variant:
        batch["image"] = torch.randn(2, 16, 1, height, width, generator=g)
    losses = CogVideoXV(1.0, ours.params.patch_size_t).losses_at(ours, batch, 0.5, torch.Generator().manual_seed(2))
    losses.mean().backward()

    x0 = batch["latents"]
    x0 = torch.cat([x0[:, :, :1], x0], dim=2) if variant.startswith("1.5") else x0
    noise, at = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)), torch.full((2,), 500)
    scheduler = CogVideoXDDIMScheduler(snr_shift_scale=1.0, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    x = scheduler.add_noise(x0, noise, at)
    if "image" in batch:
        x = torch.cat([x, torch.cat([batch["image"], torch.zeros_like(x0[:, :, 1:])], dim=2)], dim=1)
    v = reference(theirs, x, at.float(), batch["states"], torch.full((2,), 2.0))
    # diffusers' DDIM scheduler has no get_velocity.
    alpha = scheduler.alphas_cumprod[500].float()
    want = (v - (alpha.sqrt() * noise - (1 - alpha).sqrt() * x0)).square().mean(dim=(1, 2, 3, 4))
    want.mean().backward()
    assert relative(losses, want) < 1e-6
    expected = dict(theirs.named_parameters())
    got, wanted = (torch.cat([p.grad.flatten() for p in parameters]) for parameters in (
        [p for name, p in ours.named_parameters() if name in expected],  # the table of 5B-I2V is no parameter there
        [expected[name] for name, _ in ours.named_parameters() if name in expected]))
    assert relative(got, wanted) < 1e-5


def test_shares_of_dropped_captions_and_pictures(batch):
    objective, captions, pictures, g = CogVideoXV(caption_dropout=0.1, image_dropout=0.05), [], [], torch.Generator().manual_seed(0)
    batch["image"] = torch.ones(2, 16, 1, 4, 6)

    def count(x, timestep, states):
        captions.extend((states == batch["null_states"]).flatten(1).all(dim=1).tolist())
        pictures.extend((x[:, 16:, 0] == 0).flatten(1).all(dim=1).tolist())
        assert not x[:, 16:, 1:].any()
        return x[:, :16]
    for _ in range(2500):
        objective.losses(count, batch, g)
    assert abs(sum(captions) / 5000 - 0.1) < 0.015 and abs(sum(pictures) / 5000 - 0.05) < 0.012
    assert 5 < sum(a and b for a, b in zip(captions, pictures)) < 50  # one has nothing to do with the other


def test_timesteps_are_even_and_reach_both_ends(batch):
    seen = []
    g = torch.Generator().manual_seed(0)
    for _ in range(3000):
        CogVideoXV().losses(lambda x, t, s: (seen.extend(t.tolist()), x)[1], batch, g)
    assert min(seen) == 0 and max(seen) == 999 and abs(sum(seen) / len(seen) - 499.5) < 12


def test_what_is_repeated_in_front():
    x = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
    assert filled(x, 2).flatten().tolist() == [0, 0, 1, 2]
    assert filled(x, None) is x and filled(x[:, :, :2], 2).shape[2] == 2


def test_posterior_and_noisy_picture():
    g = torch.Generator().manual_seed(0)
    drawn = sample_posterior(torch.full((100_000,), 2.0), torch.full((100_000,), 2 * torch.log(torch.tensor(3.0))), 0.5, g)
    assert abs(drawn.mean() - 1.0) < 0.02 and abs(drawn.std() - 1.5) < 0.02
    strengths = torch.stack([noisy_picture(torch.zeros(3, 1, 32, 32), g).std().log() for _ in range(400)])
    assert abs(strengths.mean() + 3.0) < 0.1 and abs(strengths.std() - 0.5) < 0.06


def test_an_empty_prompt_of_another_length(batch):
    with pytest.raises(ValueError, match="at one length"):
        CogVideoXV().losses(lambda *_: None, batch | {"null_states": torch.zeros(1, 5, 24)}, torch.Generator())


def test_timesteps_may_lean_to_the_noise():
    at = CogVideoXV(noise_lean=1.3, last_share=0.06).timesteps(4000, torch.Generator().manual_seed(0))
    assert at.min() >= 0 and at.max() == 999
    assert 0.05 < (at == 999).float().mean() < 0.08 and (at > 500).float().mean() > 0.55
    even = CogVideoXV().timesteps(4000, torch.Generator().manual_seed(0))
    assert even.max() == 999 and (even == 999).float().mean() < 0.01 and 0.47 < (even > 500).float().mean() < 0.53

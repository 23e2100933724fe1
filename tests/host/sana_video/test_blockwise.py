"""LongSANA's sampler in the real host: the blocks against the same thing by hand, prompts that change, clips that go on."""

import pytest
import torch

from .video_model import FIRST, SECOND, apart, conditioning, core, host, noise, out_latent, weights  # noqa: F401

LEVELS = (1.0, 0.96, 0.727)


def draw(host, model, start, positive=None, latent=None, cfg=1.0, sampler=None, sigmas=(*LEVELS, 0.0), **kw):
    latent = torch.zeros_like(start) if latent is None else latent
    return host.comfy.sample.sample_custom(
        model, start, cfg, sampler or host.blockwise.LongSana(3), torch.tensor(sigmas), conditioning(9) if positive is None
        else positive, conditioning(1, seed=1), latent, disable_pbar=True, seed=5, **kw)


def by_hand(net, x, blocks, texts, given=None):
    """x (1, C, F, h, w). blocks: (first, end). texts: {first block: text}. given: finished frames, clean."""
    generator, past, before, out = torch.Generator().manual_seed(5), None, None, x.clone()

    def call(part, t, start, text, keep=None):
        states, values = text[0]
        t = torch.full((1,), float(t)) if not isinstance(t, torch.Tensor) else t
        return net(part, t, states, values["attention_mask"], past=past, keep=keep, first_frame=start)

    def then(keep):
        def of(a, b):
            return [of(*pair) for pair in zip(a, b)] if isinstance(a, list) else a.then(b)
        return keep if past is None else of(past, keep)

    for i, (start, end) in enumerate(blocks):
        text = texts[max(first for first in texts if first <= i)]
        if i in texts and i > 0:  # the block before is seen again by the new prompt
            past, (first, last), keep = before, blocks[i - 1], []
            call(out[:, :, first:last], 0, first, text, keep)
            past = then(keep)
        part = x[:, :, start:end]
        known = 0 if given is None else max(0, min(end, given.shape[2]) - start)
        if known == end - start:
            part = given[:, :, start:end]
        else:
            for sigma, target in zip(LEVELS, (*LEVELS[1:], 0.0)):
                if known:
                    part = torch.cat([given[:, :, start:start + known], part[:, :, known:]], 2)
                times = torch.full((1, end - start), 1000 * sigma)
                times[:, :known] = 0
                clean = part - sigma * call(part, times if known else 1000 * sigma, start, text)
                if known:
                    clean = torch.cat([given[:, :, start:start + known], clean[:, :, known:]], 2)
                part = clean if not target else (1 - target) * clean + target * torch.randn(part.shape, generator=generator)
        out[:, :, start:end] = part
        keep, before = [], past
        call(part, 0, start, text, keep)
        past = then(keep)
    return out


@pytest.mark.parametrize("frames, blocks", [(8, [(0, 5), (5, 8)]), (9, [(0, 3), (3, 6), (6, 9)]), (2, [(0, 2)])], ids=str)
def test_blocks(host, weights, frames, blocks):
    """What is left over goes into the first block; each block is drawn with the states of those before."""
    assert host.blockwise.bounds(frames, 3) == blocks
    start = noise(frames=frames)
    expected = by_hand(core(), start, blocks, {0: conditioning(9)})
    found = draw(host, host.video.load_sana_video(weights()), start)
    assert apart(found, out_latent(host, FIRST, expected)) < 1e-5
    if len(blocks) > 1:  # and not as if the last block were alone
        alone = by_hand(core(), start[:, :, blocks[-1][0]:], [(0, blocks[-1][1] - blocks[-1][0])], {0: conditioning(9)})
        assert apart(expected[:, :, blocks[-1][0]:], alone) > 1e-2


@pytest.mark.parametrize("at_once", [True, False])
def test_guidance(host, weights, monkeypatch, at_once):
    """With CFG each of the two prompts has a state of its own, whether they are computed together or not."""
    start, net, negative = noise(frames=6), core(), conditioning(1, seed=1)

    def guided(x, t, states, mask, past, keep, first_frame):
        pasts, keeps = past or (None, None), ([], [])
        said, null = (net(x, t, text[0][0], text[0][1]["attention_mask"], past=one, keep=own, first_frame=first_frame)
                      for text, one, own in zip((conditioning(9), negative), pasts, keeps))
        if keep is not None:
            keep += keeps
        return null + 3.0 * (said - null)

    expected = by_hand(guided, start, [(0, 3), (3, 6)], {0: conditioning(9)})
    if not at_once:
        monkeypatch.setattr(host.comfy.model_management, "get_free_memory", lambda *args, **kwargs: 0)
    found = draw(host, host.video.load_sana_video(weights()), start, cfg=3.0)
    assert apart(found, out_latent(host, FIRST, expected)) < 1e-5


def test_prompt_switch(host, weights):
    """The second prompt from the second block on; the first block is seen again by it."""
    start, second = noise(frames=9), conditioning(12, seed=9)
    texts = {0: conditioning(9), 1: second}
    expected = by_hand(core(), start, [(0, 3), (3, 6), (6, 9)], texts)
    switched = host.blockwise.prompt_switch(conditioning(9), second, 9)  # frame 9 of the video is in latent frame 3
    found = draw(host, host.video.load_sana_video(weights()), start, switched)
    assert apart(found, out_latent(host, FIRST, expected)) < 1e-5
    later = host.blockwise.prompt_switch(conditioning(9), second, 10)  # the next block that begins at it or after: the third
    expected = by_hand(core(), start, [(0, 3), (3, 6), (6, 9)], {0: conditioning(9), 2: second})
    assert apart(draw(host, host.video.load_sana_video(weights()), start, later), out_latent(host, FIRST, expected)) < 1e-5
    with pytest.raises(ValueError, match="frame is 0"):
        host.blockwise.prompt_switch(conditioning(9), second, 0)


@pytest.mark.parametrize("given", [1, 3, 4], ids=["a picture", "a block", "more"])
def test_clips_that_go_on(host, weights, given):
    start = noise(frames=6)
    clean = torch.randn(1, 16, given, 4, 6, generator=torch.Generator().manual_seed(2))
    begun = host.conditioning.continued({"samples": out_latent(host, FIRST, clean)}, 6 - given)
    expected = by_hand(core(), start, [(0, 3), (3, 6)], {0: conditioning(9)}, clean)
    found = draw(host, host.video.load_sana_video(weights()), start, latent=begun["samples"], noise_mask=begun["noise_mask"])
    assert apart(found, out_latent(host, FIRST, expected)) < 1e-5
    assert torch.allclose(found[:, :, :given], begun["samples"][:, :, :given], atol=1e-4)


def test_a_window_forgets(host, weights):
    """With a window of one block the third block does not know the first."""
    model, start = host.video.load_sana_video(weights()), noise(frames=9)
    other = torch.cat([-start[:, :, :3], start[:, :, 3:]], 2)
    third = [draw(host, model, x, sampler=host.blockwise.LongSana(3, window))[:, :, 6:] for window in (0, 1) for x in (start, other)]
    assert apart(third[0], third[1]) > 1e-4
    # The second block knows the first, and the third the second's state: what is left is small, and through the second alone.
    second = [draw(host, model, x, sampler=host.blockwise.LongSana(3, 1))[:, :, 3:6] for x in (start, other)]
    assert apart(second[0], second[1]) > 1e-4


def test_progress_counts_all_blocks(host, weights):
    seen = []
    draw(host, host.video.load_sana_video(weights()), noise(frames=9),
         callback=lambda step, x0, x, total: seen.append((step, total, x0.shape[2])))
    assert seen == [(i, 9, 3 * (i // 3 + 1)) for i in range(9)]


def test_memory_is_constant(host, weights):
    """What is kept between blocks does not grow with their number."""
    model, sizes = host.video.load_sana_video(weights()), []
    inner = model.model.diffusion_model
    for frames in (6, 30):
        largest = 0

        def watch(module, args, values):
            nonlocal largest
            past = args[-1].get(host.blockwise.KEY) if isinstance(args[-1], dict) else values["transformer_options"][host.blockwise.KEY]
            kept = past.past or {}
            largest = max(largest, sum(t.numel() for several in kept.values() for own in several for t in (*own.state, own.frame)))
        handle = inner.register_forward_pre_hook(watch, with_kwargs=True)
        draw(host, model, noise(frames=frames))
        handle.remove()
        sizes.append(largest)
    assert sizes[0] == sizes[1] > 0


def test_what_is_refused(host, weights):
    model = host.video.load_sana_video(weights())
    with pytest.raises(ValueError, match="one prompt at a time"):
        draw(host, model, noise(frames=6), conditioning(9) + conditioning(5))
    skipping = model.clone()
    skipping.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    with pytest.raises(ValueError, match="leaves blocks of the network out"):
        draw(host, skipping, noise(frames=6))
    with pytest.raises(ValueError, match="end in 0"):
        draw(host, model, noise(frames=6), sigmas=LEVELS)
    with pytest.raises(ValueError, match="first generation"):
        draw(host, host.video.load_sana_video(weights(SECOND)), noise(SECOND))


def test_few_step_sigmas(host):
    assert host.blockwise.few_step_sigmas("LongSANA").tolist() == pytest.approx([1.0, 0.96, 0.889, 0.727, 0.0])
    found = host.blockwise.few_step_sigmas("SANA-Video 2.0 4-step")
    assert [int(1000 * s) for s in found.tolist()] == [999, 947, 856, 666, 0]  # as its authors' code embeds them

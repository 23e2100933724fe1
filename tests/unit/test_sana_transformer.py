"""What the Sana transformer promises beyond its numbers, which tests/parity holds."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import FP16_MAX, SanaTransformer, position_code, sdpa

PARAMS = SanaParams(2, 2, 2, 32, caption_channels=24, sample_size=8)


def model(params=PARAMS, scale=0.1):
    torch.manual_seed(0)
    net = SanaTransformer(params)
    for p in net.parameters():
        nn.init.normal_(p, std=scale)
    return net.eval()


def inputs(height=6, width=4, batch=2, tokens=7):
    torch.manual_seed(1)
    mask = torch.ones(batch, tokens)
    mask[-1, 3:] = 0
    return (torch.randn(batch, 32, height, width), torch.linspace(20.0, 900.0, batch),
            torch.randn(batch, tokens, 24), mask)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def test_clip_acts_and_is_the_checkpoints_own():
    """Self-attention outputs beyond fp16 are cut in fp32 too, exactly where the checkpoint asks for it."""
    plain, clipped = model(), model(replace(PARAMS, clamp_fp16=True))
    x, t, c, m = inputs()
    assert torch.equal(plain(x, t, c, m), clipped(x, t, c, m))  # nothing is large yet
    seen = []
    for net in (plain, clipped):
        net.transformer_blocks[0].attn1.to_out[0].weight.mul_(1e6)
        net.transformer_blocks[0].attn1.register_forward_hook(lambda module, args, out: seen.append(out))
        net(x, t, c, m)
    assert seen[0].abs().max() > 2 * FP16_MAX
    assert torch.equal(seen[1], seen[0].clamp(-FP16_MAX, FP16_MAX))


@torch.no_grad()
def test_padding_changes_nothing():
    net = model()
    x, t, c, m = inputs()
    out = net(x, t, c, m)
    garbage = c.clone()
    garbage[1, 3:] = 1e3
    assert torch.equal(net(x, t, garbage, m), out)
    padded, wide = torch.cat([c, torch.randn(2, 5, 24)], 1), torch.cat([m, torch.zeros(2, 5)], 1)
    assert relative(net(x, t, padded, wide), out) < 1e-6
    assert relative(net(x, t, padded, wide.bool()), out) < 1e-6
    seen = []
    net(x, t, padded, wide, run_block=lambda i, call, *a: seen.append(a[1].shape[1]) or call(*a))
    assert seen == [7, 7]  # the five tokens that nobody attends to were not even projected


@torch.no_grad()
def test_text_is_projected_without_padding():
    net = model()
    x, t, c, m = inputs()
    out, seen = net(x, t, c, m), []
    hook = net.transformer_blocks[0].attn2.to_k.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[:-1]))
    net(x, t, c, m)
    net(x, t, c)                       # no mask: all count
    net(x, t, c, torch.ones(2, 7))
    assert seen == [(int(m.sum()),), (2, 7), (2, 7)] and m.sum() < 14
    hook.remove()

    def whole(q, k, v, heads, mask):   # keys and values of the padding as they were, were it projected
        at = mask[:, 0, 0] < 0
        assert (k[at] == 0).all() and (v[at] == 0).all() and (k[~at] != 0).any()
        return sdpa(q, torch.where(at[..., None], 7.0, k), torch.where(at[..., None], 1e3, v), heads, mask)

    assert torch.equal(net(x, t, c, m, attention=whole), out)
    half = net.to(torch.bfloat16)(x.bfloat16(), t, c.bfloat16(), m)  # -10000 is -9984 there
    assert relative(half.float(), out) < 5e-2


@torch.no_grad()
def test_a_sample_without_text_sees_all_of_the_padding():
    net = model()
    x, t, c, _ = inputs()
    everything = net(x, t, c)
    for mask in (torch.tensor([[1.0] * 7, [0.0] * 7]), torch.zeros(2, 7)):
        assert relative(net(x, t, c, mask), everything) < 1e-3


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix():
    net = model()
    x, t, c, m = inputs()
    one_by_one = torch.cat([net(x[i:i + 1], t[i:i + 1], c[i:i + 1], m[i:i + 1]) for i in range(2)])
    assert relative(net(x, t, c, m), one_by_one) < 1e-6


@torch.no_grad()
def test_run_block_stands_around_every_block():
    net, seen = model(), []
    x, t, c, m = inputs()

    def run_block(i, call, x, context, modulation):
        seen.append((i, tuple(x.shape), tuple(context.shape), tuple(modulation.shape)))
        return call(x, context, modulation)

    assert torch.equal(net(x, t, c, m, run_block=run_block), net(x, t, c, m))
    assert seen == [(i, (2, 24, 64), (2, 7, 64), (2, 6, 64)) for i in range(2)]
    skipped = net(x, t, c, m, run_block=lambda i, call, *a: a[:2] if i == 1 else call(*a))
    del net.transformer_blocks[1]
    assert torch.equal(skipped, net(x, t, c, m))


@torch.no_grad()
def test_attention_can_be_replaced():
    net, calls = model(), []
    x, t, c, m = inputs()

    def attention(q, k, v, heads, mask):
        calls.append((tuple(q.shape), tuple(k.shape), heads, tuple(mask.shape)))
        return sdpa(q, k, v, heads, mask)

    assert torch.equal(net(x, t, c, m, attention=attention), net(x, t, c, m))
    assert calls == [((2, 24, 64), (2, 7, 64), 2, (2, 1, 1, 7))] * 2


def test_operations_make_every_layer_and_no_weight_is_read():
    """A host's layers may have no weight at all until they are loaded."""
    made = []

    def lazy(kind):
        class Layer(nn.Module):
            def __init__(self, *args, device=None, dtype=None, **kw):
                super().__init__()
                assert (device, dtype) == ("meta", torch.bfloat16)
                made.append(kind)
        return Layer

    operations = type("Operations", (), {kind: lazy(kind) for kind in ("Linear", "Conv2d", "RMSNorm")})
    net = SanaTransformer(replace(PARAMS, qk_norm=True, guidance_embeds=True), device="meta", dtype=torch.bfloat16,
                          operations=operations)
    counts = {kind: made.count(kind) for kind in set(made)}
    assert counts == {"Conv2d": 1 + 2, "RMSNorm": 1 + 2 * 4, "Linear": 8 + 2 * 10}
    assert {name.split(".")[-1] for name, _ in net.named_parameters()} == {"scale_shift_table"}
    assert not list(net.buffers())


def test_no_buffers_and_no_memory_for_a_position_code():
    assert not list(SanaTransformer(replace(PARAMS, interpolation_scale=2.0, sample_size=128), device="meta").buffers())


def test_position_code_spans_the_same_range_at_every_size():
    code = position_code(6, 12, 16, base=8, interpolation_scale=2.0)
    assert code.shape == (6, 12, 16)
    columns = torch.arange(12) * (8 / 12 / 2)
    torch.testing.assert_close(code[3, :, 0], columns.sin())  # channel 0: sine of the column at frequency 1
    torch.testing.assert_close(code[:, 5, 8], (torch.arange(6) * (8 / 6 / 2)).sin())  # channel D/2: of the row


def test_sprint_asks_for_guidance():
    x, t, c, m = inputs()
    with pytest.raises(ValueError, match="Sprint.*guidance"):
        model(replace(PARAMS, guidance_embeds=True))(x, t, c, m)


def test_timesteps_are_not_rounded_to_the_networks_dtype():
    """In bf16, 999 would become 1000 and Sprint's 0.7827 would become 0.7812."""
    net = model().bfloat16()
    x, _, c, m = inputs()
    x, c = x.bfloat16(), c.bfloat16()
    seen = []
    net.time_embed.emb.timestep_embedder.linear_1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for t in (999.0, 1000.0):
            net(x, torch.full((2,), t), c, m)
    assert seen[0].dtype == torch.bfloat16 and not torch.equal(seen[0], seen[1])


def test_gradients_reach_every_parameter():
    net = model(replace(PARAMS, qk_norm=True, guidance_embeds=True, interpolation_scale=1.0)).train()
    x, t, c, m = inputs()
    net(x, t, c, m, torch.tensor([4.5, 3.0])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_tables_are_cast_where_they_are_used():
    """A host never moves or casts parameters that sit directly in a module that has children."""
    net = model().bfloat16()
    x, t, c, m = inputs()
    with torch.no_grad():
        expected = net(x.bfloat16(), t, c.bfloat16(), m)
        for name, p in net.named_parameters():
            if name.endswith("scale_shift_table"):
                p.data = p.data.float()
        out = net(x.bfloat16(), t, c.bfloat16(), m)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


def test_one_graph():
    """torch.compile traces the whole forward without a break."""
    net = model(replace(PARAMS, interpolation_scale=1.0))
    x, t, c, m = inputs()
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert relative(compiled(x, t, c, m), net(x, t, c, m)) < 1e-6


@torch.no_grad()
def test_a_text_read_before_gives_the_same():
    net = model()
    x, t, c, m = inputs()
    for mask in (m, None, torch.ones(2, 7)):
        text = net.with_pairs(net.embed_text(c, mask))
        assert (text.mask is None) == (mask is not m) and len(text.pairs) == 2
        assert relative(net(x, t, None, text=text), net(x, t, c, mask)) < 1e-6
    text = net.with_pairs(net.embed_text(c, m))
    expected = net(x, t, c, m)
    net.transformer_blocks[1].attn2.to_k.weight.fill_(float("nan"))
    assert torch.equal(net(x, t, None, text=text), expected)          # not computed again
    other = lambda i, call, x, context, modulation: call(x, context + 0.0, modulation)
    assert net(x, t, None, text=text, run_block=other).isnan().any()  # of another text it is


@torch.no_grad()
def test_padding_is_cut_where_asked():
    net = model()
    _, _, c, m = inputs()
    wide, mask = torch.cat([c, c], 1), torch.cat([m, 0 * m], 1)
    assert net.embed_text(wide, mask).context.shape[1] == net.embed_text(wide, mask, trim=True).context.shape[1] == 7
    assert net.embed_text(wide, mask, trim=False).context.shape[1] == 14
    assert net.embed_text(wide, None, trim=True).context.shape[1] == 14

"""LoRA beside a network's layers, and its file: the same change in our loader's arithmetic, in diffusers and in float64."""

import copy
import json

import pytest
import safetensors
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint as checkpoint_

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import OUT_NORM_EPS, CogVideoTransformer
from sanacog.sana_core import checkpoint
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.training import adapter_files, adapters

SANA = SanaParams(num_layers=2, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                  caption_channels=24)
VIDEO = CogVideoParams(num_layers=2, num_attention_heads=2, time_embed_dim=32, text_embed_dim=24, max_text_seq_length=6,
                       use_rotary_positional_embeddings=False)


def random(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def sana():
    torch.manual_seed(0)
    return random(SanaTransformer(SANA))


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    return (torch.randn(2, 32, 4, 4, generator=g), torch.tensor([700.0, 300.0]), torch.randn(2, 7, 24, generator=g),
            torch.ones(2, 7))


def learnt(network, **options):
    """Adapters that change something."""
    usual = {"rank": 4, "alpha": 8, "targets": ["all-linear"], "generator": torch.Generator().manual_seed(2)}
    added = adapters.add(network, **usual | options)
    with torch.no_grad():
        for low in added.layers:
            low.B.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
            if low.magnitude is not None:
                low.magnitude.mul_(1.1)
    return added


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def merged(network, added):
    """The network with W + scale * B A as its weights; for DoRA each row as long as its magnitude."""
    for name, low in zip(added.names, added.layers):
        weight = network.get_parameter(f"{name}.weight")
        whole = weight + low.scale * low.B.to(weight) @ low.A.to(weight)
        weight.data = whole if low.magnitude is None else whole * (low.magnitude.to(weight) / whole.norm(dim=1))[:, None]
    return network


@pytest.mark.parametrize("dora", [False, True])
@torch.no_grad()
def test_acts_as_changed_weights(sana, inputs, dora):
    plain = sana(*inputs)
    want = copy.deepcopy(sana).double()
    added = learnt(sana, dora=dora)
    got = sana(*inputs)
    x, t, context, mask = inputs
    want = merged(want, added)(x.double(), t, context.double(), mask)
    assert relative(got, want) < 1e-5 < relative(got, plain)
    added.remove()
    assert torch.equal(sana(*inputs), plain)


@pytest.mark.parametrize("dora", [False, True])
def test_starts_as_the_base_and_trains_the_adapters_alone(sana, inputs, dora):
    plain = sana(*inputs).detach()
    added = adapters.add(sana, 4, 4, ["attention"], dora=dora)
    out = sana(*inputs)
    assert relative(out, plain) < (1e-6 if dora else 1e-12) or torch.equal(out, plain)
    out.square().mean().backward()
    assert all(p.grad is None for p in sana.parameters())
    assert all(low.B.grad.abs().max() > 0 for low in added.layers)


def test_gradients_are_the_same_under_checkpointing(sana, inputs):
    added = learnt(sana, dropout=0.3)
    grads = []
    for run in (sana, lambda *x: checkpoint_.checkpoint(sana, *x, use_reentrant=False)):
        added.zero_grad()
        torch.manual_seed(4)
        run(*inputs).square().mean().backward()
        grads.append([p.grad.clone() for p in added.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads)) and grads[0][0].abs().max() > 0


def test_forward_mode_differentiation(sana, inputs):
    """Sprint's objective needs it."""
    want = copy.deepcopy(sana)
    merged(want, learnt(sana))
    x, *others = inputs
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the one that knows it
        got, want = (torch.func.jvp(lambda x: network(x, *others), (x,), (step,)) for network in (sana, want))
    assert max(map(relative, got, want)) < 1e-5


def test_adapters_are_fp32_on_a_base_in_bf16(sana, inputs):
    sana = sana.bfloat16()
    added = learnt(sana)
    x, t, context, mask = inputs
    assert sana(x.bfloat16(), t, context.bfloat16(), mask).dtype == torch.bfloat16
    assert {p.dtype for p in added.parameters()} == {torch.float32}


@pytest.mark.parametrize("targets, count", [
    (["attention"], 12), (["attention+out"], 16), (["all-linear"], 20), (["attn1.to_q"], 2),
    (["transformer_blocks.1.attn2.to_k"], 1), (["*.attn2.*", "proj_out"], 9), (["attention", "to_q"], 12)])
def test_targets(sana, targets, count):
    assert len(adapters.add(sana, 2, 2, targets).names) == count


@pytest.mark.parametrize("target, said", [("attn1.to_qq", "Did you mean attn1.to_q"), ("attenton", "Did you mean attention"),
                                          ("*.norm1.*", "names no linear layer"), ("norm_q", "names no linear layer")])
def test_wrong_targets(sana, target, said):
    with pytest.raises(ValueError, match=said.replace("*", r"\*")):
        adapters.add(sana, 2, 2, ["attention", target])
    assert all(p.requires_grad for p in sana.parameters())


@pytest.mark.parametrize("family, dora", [("sana", False), ("sana", True), ("cogvideox", False), ("cogvideox", True)])
def test_diffusers_draws_the_same(sana, inputs, family, dora, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders import CogVideoXLoraLoaderMixin, SanaLoraLoaderMixin

    if family == "sana":
        ours, mixin = sana, SanaLoraLoaderMixin
        theirs = diffusers.SanaTransformer2DModel(
            num_layers=2, num_attention_heads=2, attention_head_dim=32, num_cross_attention_heads=2, cross_attention_head_dim=32,
            cross_attention_dim=64, caption_channels=24, sample_size=4)
        theirs.load_state_dict(checkpoint.from_canonical(ours.state_dict(), "diffusers"))
        x, t, context, mask = inputs

        def call():
            return theirs(x, encoder_hidden_states=context, timestep=t, encoder_attention_mask=mask).sample
    else:
        from sanacog.cogvideo_core import checkpoint as video

        torch.manual_seed(0)
        ours, mixin = random(CogVideoTransformer(VIDEO)), CogVideoXLoraLoaderMixin
        theirs = diffusers.CogVideoXTransformer3DModel(num_attention_heads=2, num_layers=2, time_embed_dim=32, text_embed_dim=24,
                                                       max_text_seq_length=6, sample_width=90, sample_height=60, sample_frames=49)
        theirs.load_state_dict(video.from_canonical(ours.state_dict(), "diffusers"))
        theirs.norm_out.norm.eps = OUT_NORM_EPS  # ours is the authors'
        inputs = (torch.randn(2, 16, 3, 4, 6), torch.tensor([700.0, 300.0]), torch.randn(2, 6, 24))

        def call():
            return theirs(inputs[0].transpose(1, 2), inputs[2], inputs[1]).sample.transpose(1, 2)
    with torch.no_grad():
        plain = ours(*inputs)
        added = learnt(ours, alpha=2, dora=dora)
        for low in added.layers:
            low.B.mul_(10)  # a change that the rounding of two networks does not hide
        adapter_files.write(tmp_path / "lora.safetensors", added, {"title": "a test", "ss_steps": 30})
        change = ours(*inputs) - plain
        before = call()
        tensors, metadata = mixin.lora_state_dict(tmp_path / "lora.safetensors", return_lora_metadata=True)
        assert all("lora" in key for key in tensors)  # what its pipelines ask for
        mixin.load_lora_into_transformer(tensors, theirs.eval(), metadata=metadata)
        assert relative(call() - before, change) < 1e-4
    assert [p for p in theirs.peft_config.values()][0].lora_alpha == 4  # the scale of 0.5 stands in B


@pytest.mark.parametrize("dora", [False, True])
def test_the_file_and_back(sana, dora, tmp_path):
    added = learnt(sana, alpha=8, dora=dora)
    path = adapter_files.write(tmp_path / "a" / "lora.safetensors", added,
                               {"title": "Outlines", "architecture": "sana/lora", "resolution": "256x256", "ss_steps": 500})
    with safetensors.safe_open(path, "pt") as file:
        said = file.metadata()
        assert file.get_slice("transformer.transformer_blocks.0.ff.conv_inverted.lora_A.weight").get_shape() == [4, 64, 1, 1]
    assert said["modelspec.title"] == "Outlines" and said["modelspec.architecture"] == "sana/lora"
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_trained_alpha"], said["ss_steps"]) == ("4", "4", "8", "500")
    config = json.loads(said["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"], len(config["transformer.target_modules"])) == (4, 4, 20)
    assert not list(tmp_path.glob("a/*.part"))
    other = adapters.add(random(SanaTransformer(SANA)), 4, 8, ["all-linear"], dora=dora)
    adapter_files.load(path, other)
    assert all(torch.allclose(a, b) for a, b in zip(added.parameters(), other.parameters()))
    with pytest.raises(ValueError, match="other layers than lora.targets"):
        adapter_files.load(path, adapters.add(random(SanaTransformer(SANA)), 4, 8, ["attention"]))
    with pytest.raises(ValueError, match="its rank is 4, and lora.rank is 2"):
        adapter_files.load(path, adapters.add(random(SanaTransformer(SANA)), 2, 8, ["all-linear"], dora=dora))


def test_a_base_in_eight_bits(inputs):
    from sanacog.kernels.quant import dequantise, quantise

    class Kept(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, adapters.matrix_of(self), self.bias)

    layer = nn.Linear(64, 32)
    tensors, entry = quantise(layer.weight.detach(), "int8")
    kept = Kept(64, 32)
    kept.weight, kept.bias, kept.entry = nn.Parameter(tensors["weight"], requires_grad=False), layer.bias, entry
    kept.register_buffer("weight_scale", tensors["weight_scale"])
    network = nn.Module()
    network.proj = kept
    added = adapters.add(network, 2, 2, ["proj"], dora=True)
    x = torch.randn(5, 64)
    want = nn.functional.linear(x, dequantise(tensors, entry), layer.bias)
    assert relative(network.proj(x), want) < 1e-5
    assert torch.allclose(added.layers[0].magnitude, dequantise(tensors, entry).norm(dim=1))

"""What bench/ measures, on tiny models: both sides share their weights, agree, and land in the JSON."""

import gc
import json
import shutil
from dataclasses import replace

import pytest
import torch

from sanacog.bench import accuracy, cogvideox, gpu, harness, kernels, sana, sana_image, sides, training
from sanacog.commands import bench as cli
from sanacog.cogvideo_core.config import CogVideoParams, CogVideoVAEParams
from sanacog.kernels import dispatch, processor
from sanacog.sana_core.autoencoder import DCAEParams
from sanacog.sana_core.config import SanaParams

TINY = SanaParams(num_layers=2, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=32,
                  caption_channels=24)
TINY_DCAE = DCAEParams(
    encoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2, encoder_block_out_channels=(32,) * 6,
    decoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2, decoder_block_out_channels=(32,) * 6,
    encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6,
    encoder_qkv_multiscales=((),) * 4 + ((5,),) * 2, decoder_qkv_multiscales=((),) * 4 + ((5,),) * 2)

TINY_VIDEO = CogVideoParams(num_layers=2, num_attention_heads=2, text_embed_dim=24, max_text_seq_length=12)
TINY_VAE = CogVideoVAEParams(block_out_channels=(8, 16, 16, 32), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(sana, "SIZES", {"tiny": TINY})
    monkeypatch.setattr(sana, "DCAEParams", lambda: TINY_DCAE)
    monkeypatch.setattr(cogvideox, "VARIANTS", {"tiny": TINY_VIDEO, "tiny 1.5": replace(TINY_VIDEO, patch_size_t=2)})
    monkeypatch.setattr(cogvideox, "VAE", TINY_VAE)
    # Each figure collects garbage before and after; without what is there already that takes no time.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["diffusers", "ours"])
def baseline(request, monkeypatch):
    if request.param == "diffusers":
        pytest.importorskip("diffusers")
    monkeypatch.setattr(sides, "DIFFUSERS", request.param == "diffusers")


CASES = {"step": lambda: sana.step("tiny", 128), "decode": lambda: sana.decode(64), "encode": lambda: sana.encode(64),
         "video step": lambda: cogvideox.step("tiny", 3, 48, 64, layers=1, batch=2),
         "1.5 step": lambda: cogvideox.step("tiny 1.5", 4, 64, 48),
         "picture": lambda: sana_image.picture("tiny", 64, steps=3),
         "picture in bf16": lambda: sana_image.picture("tiny", 64, steps=3, dtype=torch.bfloat16), "Sprint": lambda: sana_image.sprint("tiny", 64, steps=2),
         "video decode": lambda: cogvideox.decode(9, 32, 48), "video encode": lambda: cogvideox.encode(9, 32, 48)}


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_sides_agree(baseline, name):
    case = CASES[name]()
    want = case.baseline(*case.inputs[0])
    assert want.isfinite().all() and want.std() > 1e-3
    assert harness.relative_l2(case.ours(*case.inputs[0]), want) < case.limit


def test_training_goes_the_same_way(baseline):
    case = training.step("tiny", 128)
    before = [case.ours().item() for _ in range(4)]
    with torch.inference_mode():  # as it is measured
        assert [harness.relative_l2(torch.tensor(one), case.baseline()) < case.limit for one in before] == [True] * 4


def test_weights_are_shared_and_not_copied(baseline):
    for make in (lambda: sana.transformers(TINY, "cpu", torch.float32), lambda: sana.autoencoders("cpu", torch.float32),
                 lambda: cogvideox.transformers(TINY_VIDEO, "cpu", torch.float32),
                 lambda: cogvideox.autoencoders("cpu", torch.float32)):
        places = [{p.data_ptr() for p in model.parameters()} for model in make()]
        assert places[0] == places[1]


def test_inputs_are_those_of_one_guided_step():
    x, timestep, context, mask = sana.step("tiny", 512, prompt=7).inputs[0]
    assert (x.shape, timestep.shape, context.shape) == ((2, 32, 16, 16), (2,), (2, 300, 24))
    assert mask.sum(dim=1).tolist() == [7, 1]


@torch.inference_mode()
def test_a_picture_is_sampled_with_guidance_and_decoded(baseline, monkeypatch):
    """The transformers as functions that are known, the decoder as none: what is left is the sampler and its inputs."""
    seen = []

    def network(x, t, context, mask, guidance=None):
        seen.append((t.tolist(), mask.sum(dim=1).tolist(), guidance))
        return torch.cat([x[:1], torch.zeros_like(x[:1])])[: len(x)]  # for the prompt its noise, for the empty prompt nothing
    monkeypatch.setattr(sana_image, "networks", lambda *args: ([(network, lambda z: z, lambda *_: {})] * 2, []))
    case = sana_image.picture("tiny", 64, steps=2)
    x = case.inputs[0][0][:1]
    sigma, middle = (3 * at / (1 + 2 * at) for at in (0.999, 0.4995))
    guessed = x * (1 - sana_image.CFG * sigma)
    x = middle / sigma * x + (1 - middle / sigma) * guessed
    assert torch.allclose(case.ours(*case.inputs[0]) * sana.LATENT_SCALE, x * (1 - sana_image.CFG * middle), rtol=1e-3, atol=1e-5)
    assert [(*times, *tokens) for times, tokens, _ in seen] == [(999, 999, 120, 1), (749, 749, 120, 1)]

    case = sana_image.sprint("tiny", 64)
    assert torch.allclose(case.ours(*case.inputs[0]) * sana.LATENT_SCALE, torch.zeros(1), atol=1e-6)  # all of it is noise
    assert seen[2:] == [([1.0], [120], torch.tensor([4.5]))]


@pytest.fixture
def quick_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "PAIRS", 2)
    monkeypatch.setattr(gpu, "WARMUP", 1)
    monkeypatch.setattr(gpu, "FEW", 2)
    monkeypatch.setattr(gpu, "LAYERS", 1)
    monkeypatch.setattr(gpu, "VIDEO_CHECK", (1, 16, 16))
    monkeypatch.setattr(sides, "compile_blocks", lambda stacks: compiled.append([len(s) for s in stacks]))
    compiled = []
    return compiled


SMALL = {"linear attention": [(1, 9, 2)], "gated depthwise": [(1, 3, 4, 8)], "RMS norm": [(1, 8, 4, 4)],
         "rotary code": [(1, 5, 2)], "scale, shift, SiLU": [(1, 4, 8, 16, 16)]}


def run_gpu(folder, minutes=7.0, sizes={}):
    status = gpu.measure_all(folder, minutes, steps=[("tiny", 64)], pixels=32, clips=[("tiny", 2, 32, 48)],
                             video=(1, 16, 16), sizes=sizes, device="cpu")  # bf16 is slow here
    return status, json.loads((folder / "gpu_cpu.json").read_text())


def test_gpu_figures(baseline, quick_gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(sides.LIMITS, torch.bfloat16, 5e-2)  # two layers of random weights, not a real model
    status, report = run_gpu(tmp_path)
    assert status == 0 and not report["failed"]
    assert [c["name"] for c in report["checks"]] == [
        "Sana tiny step, 512 px, batch 2, 120 tokens", "DC-AE decode, 32 px",
        "CogVideoX tiny step, 1 layers, 524 tokens, batch 1", "CogVideoX VAE decode, 1 frames, 16 x 16 px"]
    assert all(c["fp32"] < 1e-5 < c["ours_bf16"] < 5e-2 for c in report["checks"])
    both = ["Sana tiny step, 64 px, batch 2, 120 tokens", "DC-AE decode, 32 px",
            "CogVideoX tiny step, 1 layers, 24 tokens, batch 1", "Sana Sprint tiny picture, 32 px, 1 step and decode"]
    long = ["Sana tiny picture, 32 px, 20 steps and decode", "CogVideoX VAE decode, 1 frames, 16 x 16 px",
            "CogVideoX VAE encode, 1 frames, 16 x 16 px"]
    assert [r["name"] for r in report["rows"]] == [
        *both, *(name + ", compiled" for name in both), "DC-AE encode, 32 px", "Sana Sprint tiny picture, 32 px, 2 steps and decode",
        long[0], long[2], *long[1:]]
    host = [r["name"].removesuffix(", wall clock") for r in report["host_rows"]]
    assert host == [r["name"] for r in report["rows"][:-2] if r["name"] not in long[:1] and "step, 1 layers" not in r["name"]]
    assert quick_gpu == ([[2, 2], [1, 1], [1, 1], [2, 2], [1, 1]] if sides.DIFFUSERS else [[2], [1], [1], [2], [1]])


def test_kernels_stand_beside_their_eager_forms(monkeypatch, tmp_path):
    """The kernels as eager forms of their own; the second one of them is wrong."""
    monkeypatch.setattr(dispatch, "fusible", lambda *tensors, compiled: True)
    monkeypatch.setattr(dispatch, "run", lambda name, *args: kernels.EAGER[name](*args) * (1 + (name == "gated_depthwise")))
    monkeypatch.setattr(gpu, "PAIRS", 2)
    bench = gpu.Bench(tmp_path, 1.0, "cpu")
    for what in SMALL:
        bench.row(lambda: kernels.kernel(what, *SMALL[what], "cpu", torch.bfloat16, sets=2), into="kernels")
    report = json.loads((tmp_path / "gpu_cpu.json").read_text())
    assert [row["name"] for row in report["kernels"]] == [
        "linear attention, 1 x 9 x 2", "RMS norm, 1 x 8 x 4 x 4", "rotary code, 1 x 5 x 2", "scale, shift, SiLU, 1 x 4 x 8 x 16 x 16"]
    assert ["gated depthwise" in line for line in report["failed"]] == [True]
    row = report["kernels"][0]
    assert row["share_of_copy"] == pytest.approx(4 * 9 * 2 * 32 * 2 / row["ours"]["median"] / report["copied_bytes_a_second"])


def test_no_kernels_no_rows(quick_gpu, tmp_path):
    status, report = run_gpu(tmp_path, sizes={"rotary code": [(1, 5, 2)]})
    assert status == 1 and not report["kernels"] and "no fused kernels" in report["failed"][-1]


def test_gpu_figures_stop_at_the_time(quick_gpu, tmp_path):
    status, report = run_gpu(tmp_path, minutes=0)
    assert (status, report["rows"], report["left_out"], len(report["checks"])) == (0, [], 14, 4)


def test_gpu_figures_fail_on_a_wrong_model(quick_gpu, tmp_path, monkeypatch):
    right = sana.transformers

    def wrong(*args):
        ours, theirs = right(*args)
        ours.proj_out.weight = torch.nn.Parameter(ours.proj_out.weight * 1.5)
        return ours, theirs
    monkeypatch.setattr(sana, "transformers", wrong)
    status, report = run_gpu(tmp_path)
    assert status == 1 and len(report["failed"]) == 6  # Sana's check, two steps, twice Sprint, a picture
    assert len(report["rows"]) == 9


@pytest.fixture
def compiled(monkeypatch):
    """Stacks that were compiled, in place of seconds of compiling."""
    stacks = []
    monkeypatch.setattr(sides, "compile_blocks", stacks.extend)
    return stacks


FIGURES = {"step": (lambda dtype: sana.step("tiny", 128, dtype=dtype), 2, True, "cpu.json"),
           "encode": (lambda _: sana.encode(64), 2, False, "cpu.json")}
STEP = "Sana tiny step, 128 px, batch 2, 120 tokens"


@pytest.mark.parametrize("bf16", [False, True])
def test_cpu_figures_are_printed_and_written(tmp_path, monkeypatch, capsys, baseline, compiled, bf16):
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: bf16)
    monkeypatch.setattr(cli, "CPU_CASES", FIGURES)
    assert cli.main(["step", "encode", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    cli.main(["step", "--pairs", "3", "--output", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads((tmp_path / "cpu.json").read_text())}
    wanted = {STEP: "diffusers, fp32, eager", "DC-AE encode, 64 px": "diffusers, fp32, eager"}
    if bf16:
        wanted |= {STEP + ", bf16 beside fp32": "diffusers, fp32, eager", STEP + ", bf16": "diffusers, bf16, eager"}
    if sides.DIFFUSERS:
        wanted |= {STEP + ", beside compiled": "diffusers, fp32, compiled", "DC-AE encode, 64 px, beside compiled": "diffusers, fp32, compiled"}
        if bf16:
            wanted[STEP + ", bf16 beside compiled"] = "diffusers, bf16, compiled"
    assert {name: row["conditions"]["baseline"] for name, row in rows.items()} == wanted
    assert all(any(line.startswith(name) for line in printed) for name in rows) and bool(compiled) == sides.DIFFUSERS
    assert rows[STEP]["conditions"]["clock"] == "wall" and rows[STEP]["conditions"]["dtype"] == "fp32"
    assert [harness.row_from_json(rows[name]).pairs for name in (STEP, "DC-AE encode, 64 px")] == [3, 2]


def test_cpu_figures_fail_on_a_wrong_model(tmp_path, monkeypatch, capsys, compiled):
    case = sana.encode(64)
    case.ours = lambda x: case.baseline(x) * 1.001
    monkeypatch.setattr(cli, "CPU_CASES", {"encode": (lambda _: case, 2, False, "cpu.json")})
    assert cli.main(["encode", "--output", str(tmp_path)]) == 1
    assert "not timed" in capsys.readouterr().out
    assert not (tmp_path / "cpu.json").exists()


@pytest.mark.parametrize("args, message", [(["stpe"], "stpe"), (["--pairs", "1"], "at least 2"), (["--clock", "cpu"], "--threads 1")])
def test_wrong_arguments_are_refused(args, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(args)
    assert message in capsys.readouterr().err


def test_accuracy_says_how_to_make_missing_models(tmp_path):
    pytest.importorskip("sentencepiece")
    with pytest.raises(FileNotFoundError, match="run.py train tiny-sana"):
        accuracy.accuracy(tmp_path)
    shutil.copytree(accuracy.MODELS, tmp_path / "models", ignore=shutil.ignore_patterns("*sprint*", "*.png"))
    with pytest.raises(FileNotFoundError, match="run.py train tiny-sprint"):
        accuracy.sprint_accuracy(tmp_path / "models")
    with pytest.raises(FileNotFoundError, match="run.py train tiny-cogvideox"):
        accuracy.video_accuracy(tmp_path)


def test_accuracy_is_shown_as_a_table():
    found = {"a": {"colour": 0.5}, "b": {"colour": 1.0, "first frame": 21.0}, "wanted": {"colour": 0.9}, "seconds": 1.0}
    head, colour, frame = accuracy.lines(found)
    assert head.split() == ["held-out", "prompts", "a", "b", "wanted"]
    assert colour.split() == ["colour", "0.500", "1.000", "0.90"] and frame.split() == ["first", "frame", "21.000"]

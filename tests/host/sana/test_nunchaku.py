"""Nunchaku's int4 files of Sana: packed here number by number, at the places that its documentation gives, and loaded."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from sanacog.sana_core import nunchaku
from sanacog.sana_core.checkpoint import from_canonical

from .. import tiny
from .sana_model import apart, host, sample  # noqa: F401

D, HIDDEN, RANK = 64, 160, 16
PARAMS = tiny.SANA


def up(n, to):
    return -(-n // to) * to


def filled(t, *sizes, value=0.0):
    """`t` with rows and columns appended up to these sizes."""
    out = torch.full(sizes, value, dtype=t.dtype)
    out[tuple(slice(n) for n in t.shape)] = t
    return out


def packed_weight(numbers):
    """(N, K) of -8 ... 7 -> bytes (N, K / 2): the place of each number in units of 4 bits."""
    N, K = numbers.shape
    n, k = torch.meshgrid(torch.arange(N), torch.arange(K), indexing="ij")
    place = (n // 128) * (K // 64) + k // 64                           # tile of 128 x 64
    for part, count in ((n % 128 // 16, 8), (n % 8, 8), (k % 32 // 8, 4), (n % 16 // 8, 2), (k % 64 // 32, 2), (k % 8, 8)):
        place = place * count + part
    nibbles = torch.empty(N * K, dtype=torch.uint8)
    nibbles[place.flatten()] = (numbers.flatten() & 15).to(torch.uint8)
    return (nibbles[0::2] | nibbles[1::2] << 4).view(torch.int8).reshape(N, K // 2)


def packed_vector(values):
    """The order that is written down in nunchaku's packer: lane 0 holds 0 1 8 9, lane 1 2 3 10 11, lane 4 16 17 24 25."""
    order = [16 * sixteen + 2 * lane + 8 * second + one for sixteen in range(8) for lane in range(4) for second in range(2)
             for one in range(2)]
    assert order[:8] == [0, 1, 8, 9, 2, 3, 10, 11] and order[16:20] == [16, 17, 24, 25] and order[-4:] == [118, 119, 126, 127]
    return values.reshape(-1, 128)[:, order].flatten()


def packed_scales(scales):
    """(N, K / 64) -> (K / 64, N), of which the shape says nothing: 128 rows together, column by column."""
    return torch.cat([packed_vector(column) for rows in scales.split(128) for column in rows.T.contiguous()]).reshape(
        scales.shape[1], -1)


def packed_branch(matrix, down):
    """up (N, R), or down (R, K) -> (K, R): tiles of 16 x 16, by K or N first."""
    rows, columns = matrix.shape
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = (c // 16 * (rows // 16) + r // 16) if down else (r // 16 * (columns // 16) + c // 16)
    for part, count in ((r % 8, 8), (c % 8 // 2, 4), (r % 16 // 8, 2), (c % 16 // 8, 2), (c % 2, 2)):
        place = place * count + part
    out = torch.empty(matrix.numel(), dtype=matrix.dtype)
    out[place.flatten()] = matrix.flatten()
    return out.reshape(columns, rows) if down else out.reshape(rows, columns)


def layer(weight, generator, bias=None):
    """({leaf: tensor} of a layer as the file has it, the matrix that it stands for in float64)."""
    N, K = weight.shape
    rows, columns = up(N, 128), up(K, 128)
    smooth = (torch.rand(K, generator=generator) + 0.5).bfloat16()
    branch = [(torch.randn(*shape, generator=generator) * 0.05).bfloat16() for shape in ((N, RANK), (RANK, K))]
    rest = filled((weight - (branch[0].float() @ branch[1].float())) * smooth.float(), rows, columns)
    groups = rest.unflatten(1, (-1, 64))
    scales = (groups.abs().amax(-1) / 7).clamp(min=1e-6).bfloat16()
    numbers = (groups / scales.float()[..., None]).round().clamp(-8, 7).flatten(1).int()
    parts = {"qweight": packed_weight(numbers), "wscales": packed_scales(scales),
             "smooth": packed_vector(filled(smooth, columns, value=1.0)),
             "lora_up": packed_branch(filled(branch[0], rows, RANK), down=False),
             "lora_down": packed_branch(filled(branch[1], RANK, columns), down=True)}
    if bias is not None:
        parts["bias"] = packed_vector(filled(bias.bfloat16(), rows))
    stands = numbers.double() * scales.double().repeat_interleave(64, 1)
    return parts, (stands[:N, :K] / smooth.double() + branch[0].double() @ branch[1].double())


def by_turns(value_and_gate, pairs):
    """Values, then gates -> by turns, filled up to so many pairs."""
    value, gate = (filled(half, pairs, *half.shape[1:]) for half in value_and_gate.chunk(2))
    return torch.stack([value, gate], dim=1).flatten(0, 1)


@pytest.fixture(scope="module")
def files():
    """(a file's tensors, the weights that it stands for in diffusers' names)."""
    generator = torch.Generator().manual_seed(0)
    plain = {key: t.bfloat16() for key, t in from_canonical(tiny.sana(PARAMS).state_dict(), "diffusers").items()}
    file, stands, pairs = {}, dict(plain), up(HIDDEN, 64)
    file |= {key: t for key, t in plain.items() if not key.startswith("transformer_blocks.") or "scale_shift_table" in key}
    for i in range(PARAMS.num_layers):
        block = f"transformer_blocks.{i}."

        def get(name, leaf="weight"):
            t = plain[f"{block}{name}.{leaf}"].float()
            return t.flatten(1) if t.ndim == 4 and t.shape[1] > 1 else t

        def put(name, weight, bias=None):
            parts, back = layer(weight, generator, bias)
            file.update({f"{block}{name}.{leaf}": t for leaf, t in parts.items()})
            return back.float().bfloat16()

        q, k, v = (filled(get(f"attn1.to_{one}"), 128, D) for one in "qkv")
        heads = torch.stack([k.unflatten(0, (-1, 32)), v.unflatten(0, (-1, 32))], dim=1).flatten(0, 2)
        back = put("attn.qkv_proj", torch.cat([q, heads]))
        for one, start in (("k", 128), ("v", 160)):
            rows = [row for head in range(D // 32) for row in range(start + 64 * head, start + 64 * head + 32)]
            stands[f"{block}attn1.to_{one}.weight"] = back[rows]
        stands[f"{block}attn1.to_q.weight"] = back[:D]
        for theirs, ours in (("attn.out_proj", "attn1.to_out.0"), ("cross_attn.q_linear", "attn2.to_q"),
                             ("cross_attn.out_proj", "attn2.to_out.0")):
            stands[f"{block}{ours}.weight"] = put(theirs, get(ours), get(ours, "bias"))
        for leaf in ("weight", "bias"):
            file[f"{block}cross_attn.kv_linear.{leaf}"] = torch.cat([plain[f"{block}attn2.to_{one}.{leaf}"] for one in "kv"])
        back = put("ff.inverted_conv", by_turns(get("ff.conv_inverted"), pairs), by_turns(get("ff.conv_inverted", "bias"), pairs))
        stands[f"{block}ff.conv_inverted.weight"] = torch.cat([back[0 : 2 * HIDDEN : 2], back[1 : 2 * HIDDEN : 2]])[:, :, None, None]
        back = put("ff.point_conv", get("ff.conv_point"))
        stands[f"{block}ff.conv_point.weight"] = back[:, :, None, None]
        file[f"{block}ff.depth_conv.weight"] = by_turns(plain[f"{block}ff.conv_depth.weight"], pairs).permute(0, 2, 3, 1).contiguous()
        file[f"{block}ff.depth_conv.bias"] = by_turns(plain[f"{block}ff.conv_depth.bias"], pairs)
    return file, stands


def test_every_tensor(files):
    file, stands = files
    found = nunchaku.to_diffusers(file)
    assert found.keys() == stands.keys()
    for key, wanted in stands.items():
        assert found[key].shape == wanted.shape and found[key].dtype == torch.bfloat16, key
        assert apart(found[key].float(), wanted.float()) < 2e-3, key  # a bf16 step, where fp32 and float64 round otherwise
    shapes, dtypes = {key: tuple(t.shape) for key, t in file.items()}, {key: t.dtype for key, t in file.items()}
    assert nunchaku.diffusers_shapes(shapes, dtypes) == {key: tuple(t.shape) for key, t in stands.items()}
    original = from_canonical(tiny.sana(PARAMS).state_dict(), "diffusers")
    assert 0.02 < apart(found["transformer_blocks.0.ff.conv_point.weight"].float(), original[
        "transformer_blocks.0.ff.conv_point.weight"]) < 0.2


def save(path, tensors):
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, metadata={"config": json.dumps(asdict(PARAMS))})
    return path


def test_loaded(host, files, tmp_path, caplog):
    file, stands = files
    extra = {f"{key}_orig": t.clone() for key, t in file.items() if key.endswith(".smooth")}
    extra["transformer_blocks.0.attn.qkv_proj.bias"] = torch.zeros(384, dtype=torch.bfloat16)
    caplog.set_level("INFO")
    wanted = sample(host, host.sana.load_sana(save(tmp_path / "plain.safetensors", stands)))
    assert "memory of unquantised weights" not in caplog.text
    found = sample(host, host.sana.load_sana(save(tmp_path / "svdq-int4-sana-1600m.safetensors", file | extra)))
    assert "svdq-int4-sana-1600m.safetensors: turned back to bf16, which takes the memory of unquantised weights" in caplog.text
    assert apart(found, wanted) < 2e-2
    original = sample(host, host.sana.load_sana(tiny.save_sana(tmp_path / "sana.safetensors", PARAMS)))
    assert apart(found, original) > 2 * apart(found, wanted)


def test_folder_of_two_files(host, files, tmp_path):
    import folder_paths

    file, stands = files
    folder = tmp_path / "svdq-int4-sana-1600m"
    folder.mkdir()
    blocks = {key: t for key, t in file.items() if key.startswith("transformer_blocks.")}
    save(folder / "transformer_blocks.safetensors", blocks)
    with pytest.raises(FileNotFoundError, match="of 2 files of this model 1 are missing beside it: unquantized_layers.safetensors"):
        host.sana.load_sana(folder / "transformer_blocks.safetensors")
    save(folder / "unquantized_layers.safetensors", {key: t for key, t in file.items() if key not in blocks})
    whole = sample(host, host.sana.load_sana(save(tmp_path / "whole.safetensors", file)))
    for path in (folder, folder / "unquantized_layers.safetensors"):
        assert torch.equal(sample(host, host.sana.load_sana(path)), whole)
    kinds = folder_paths.folder_names_and_paths
    before = kinds["diffusion_models"]
    try:
        kinds["diffusion_models"] = ([str(tmp_path)], {".safetensors"})
        assert host.files.choices("diffusion_models") == ["whole.safetensors", "svdq-int4-sana-1600m"]
    finally:
        kinds["diffusion_models"] = before


def test_refused(host, files, tmp_path):
    file, _ = files
    block, path = "transformer_blocks.0.", tmp_path / "x.safetensors"

    def refused(match, tensors):
        with pytest.raises(ValueError, match=f"x.safetensors: .*{match}"):
            host.sana.load_sana(save(path, tensors))

    refused("Nunchaku's fp4.*Take the int4 file", file | {f"{block}attn.out_proj.wtscale": torch.ones(1)})
    refused("without what is around them: put transformer_blocks.safetensors and unquantized_layers.safetensors into one folder",
            {key: t for key, t in file.items() if key.startswith("transformer_blocks.")})
    refused("no Sana transformer of Nunchaku's has transformer_blocks.0.attn.norm_q.weight",
            file | {f"{block}attn.norm_q.weight": torch.ones(4)})
    refused("damaged Sana transformer in Nunchaku's int4.*smooth",
            {key: t for key, t in file.items() if key != f"{block}ff.point_conv.smooth"})
    odd = dict(file)
    odd[f"{block}ff.point_conv.qweight"] = torch.randint(-128, 127, file[f"{block}ff.point_conv.qweight"].shape, dtype=torch.int8)
    refused("hidden channels beyond 160 are not empty", odd)

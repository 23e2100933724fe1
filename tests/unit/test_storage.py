"""Checkpoints on disk: every form that loads, and every damaged one with its sentence."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from sanacog.storage.checkpoints import check_finite, open_checkpoint, write_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


def same(loaded, weights=WEIGHTS):
    return loaded.keys() == weights.keys() and all(torch.equal(loaded[key], t) for key, t in weights.items())


def shards(folder, ending=".safetensors", index=True):
    """Two files of one tensor each, and their index."""
    names = [f"model-0000{i}-of-00002{ending}" for i in (1, 2)]
    for name, (key, t) in zip(names, WEIGHTS.items()):
        save_file({key: t}, folder / name) if ending == ".safetensors" else torch.save({key: t}, folder / name)
    if index:
        (folder / f"model{ending}.index.json").write_text(json.dumps({"weight_map": dict(zip(WEIGHTS, names))}))
    return [folder / name for name in names]


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path, metadata={"config": '{"depth": 2}', "made": "here"})
    (tmp_path / "config.json").write_text('{"depth": 3}')
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.path == path and checkpoint.files == (path,)
    assert checkpoint.shapes == {"a.weight": (2, 3), "b.weight": (4,)}
    assert checkpoint.dtypes == {"a.weight": torch.float32, "b.weight": torch.bfloat16}
    assert checkpoint.metadata["made"] == "here"
    assert checkpoint.config == {"depth": 2}  # the file's own before the folder's
    assert same(checkpoint.load())


def test_content_decides_not_the_ending(tmp_path):
    save_file(WEIGHTS, tmp_path / "really_safetensors.pth")
    torch.save(WEIGHTS, tmp_path / "really_pickle.safetensors")
    assert same(open_checkpoint(tmp_path / "really_safetensors.pth").load())
    assert same(open_checkpoint(tmp_path / "really_pickle.safetensors").load())


@pytest.mark.parametrize("wrap", [
    lambda w: w, lambda w: {"state_dict": w, "step": 3}, lambda w: {"state_dict": {"module": w}, "scale": torch.ones(1)},
    lambda w: {"ema": w, "optimizer": {"state": {0: torch.ones(2)}}}, lambda w: w | {"epoch": 7}])
def test_pickle(tmp_path, wrap):
    path = tmp_path / "model.pth"
    torch.save(wrap(WEIGHTS), path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.shapes == {"a.weight": (2, 3), "b.weight": (4,)}
    assert same(checkpoint.load())


def test_pickle_of_old_torch(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    assert same(open_checkpoint(path).load())


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_sharded(tmp_path, ending):
    files = shards(tmp_path, ending)
    (tmp_path / "config.json").write_text('{"depth": 2}')
    # The folder, its index, or any one shard, as a file list offers them.
    for path in (tmp_path, tmp_path / f"model{ending}.index.json", files[1]):
        checkpoint = open_checkpoint(path)
        assert checkpoint.files == tuple(files)
        assert checkpoint.config == {"depth": 2}
        assert same(checkpoint.load())


def test_sharded_without_index(tmp_path):
    shards(tmp_path, index=False)
    assert same(open_checkpoint(tmp_path).load())


def test_pipeline(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    save_file(WEIGHTS, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_text('{"depth": 2}')
    checkpoint = open_checkpoint(tmp_path, subfolder="vae")
    assert checkpoint.path == tmp_path / "vae" and checkpoint.config == {"depth": 2} and same(checkpoint.load())
    with pytest.raises(ValueError, match="whole pipeline folder.*folders: vae"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder transformer in it"):
        open_checkpoint(tmp_path, subfolder="transformer")


def test_which_file_of_a_folder(tmp_path):
    torch.save({"c": torch.ones(1)}, tmp_path / "model.bin")
    save_file({"c": torch.ones(1)}, tmp_path / "model.fp16.safetensors")
    assert open_checkpoint(tmp_path).files[0].name == "model.fp16.safetensors"
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).files[0].name == "model.safetensors"
    save_file(WEIGHTS, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="several models in this folder .model.safetensors, other.safetensors."):
        open_checkpoint(tmp_path)


def test_where_a_config_lies(tmp_path):
    def place(path):
        return open_checkpoint(path).config_place

    config = tmp_path / "config.json"
    config.write_text('{"depth": 2}')
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert place(tmp_path / "model.safetensors") == "beside"
    # The same model in other number types, in shards, as a pickle.
    save_file(WEIGHTS, tmp_path / "model.fp16.safetensors")
    torch.save(WEIGHTS, tmp_path / "model.bin")
    shards(tmp_path)
    assert place(tmp_path / "model-00001-of-00002.safetensors") == place(tmp_path / "model.fp16.safetensors") == "beside"
    save_file(WEIGHTS, tmp_path / "inside.safetensors", metadata={"config": '{"depth": 3}'})
    assert place(tmp_path / "inside.safetensors") == "inside"
    assert place(tmp_path / "model.safetensors") == "shared"
    config.unlink()
    assert open_checkpoint(tmp_path / "model.safetensors").config is None
    versions = tmp_path / "versions"  # dots in names are no number types
    versions.mkdir()
    (versions / "config.json").write_text("{}")
    for name in ("CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V"):
        save_file(WEIGHTS, versions / f"{name}.safetensors")
    assert place(versions / "CogVideoX1.5-5B.safetensors") == "shared"
def test_a_complete_model_is_taken_before_an_incomplete_one(tmp_path):
    """What a broken-off download leaves, beside a variant that is whole."""
    save_file(WEIGHTS, tmp_path / "model.bf16.safetensors")
    first, second = shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    assert open_checkpoint(tmp_path).files == (first, second)
    first.unlink()
    assert open_checkpoint(tmp_path).files[0].name == "model.bf16.safetensors"
    second.unlink()
    assert open_checkpoint(tmp_path).files[0].name == "model.bf16.safetensors"
    (tmp_path / "model.bf16.safetensors").unlink()
    torch.save(WEIGHTS, tmp_path / "model.bin")
    assert open_checkpoint(tmp_path).files[0].name == "model.bin"
    (tmp_path / "model.bin").unlink()
    assert [file.name for file in tmp_path.iterdir()] == [index.name]
    with pytest.raises(FileNotFoundError, match="of 2 files of this model 2 are missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["model.safetensors.index.bf16.json", None])
def test_shards_of_a_variant(tmp_path, index):
    names = [f"model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, (key, t) in zip(names, WEIGHTS.items()):
        save_file({key: t}, tmp_path / name)
    paths = [tmp_path, tmp_path / names[1]]
    if index:
        (tmp_path / index).write_text(json.dumps({"weight_map": dict(zip(WEIGHTS, names))}))
        paths.append(tmp_path / index)
    for path in paths:
        assert same(open_checkpoint(path).load())
    shards(tmp_path)
    assert open_checkpoint(tmp_path).files[0].name == "model-00001-of-00002.safetensors"  # a plain name before a variant's


def test_shards_by_names_of_their_own(tmp_path):
    names = ["first.safetensors", "second.safetensors"]
    for name, (key, t) in zip(names, WEIGHTS.items()):
        save_file({key: t}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip(WEIGHTS, names))}))
    assert same(open_checkpoint(tmp_path).load())


def test_a_file_and_its_own_shards_are_one_model(tmp_path):
    shards(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).files == (tmp_path / "model.safetensors",)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": 3}}',
                                     '{"weight_map": {"a": "../b.safetensors"}}', "[" * 100_000, "\udcff"])
def test_an_index_that_is_none(tmp_path, content):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    for place in (path, tmp_path):
        with pytest.raises(ValueError, match="model.safetensors.index.json: .*index of a sharded model. Get it again"):
            open_checkpoint(place)


def test_unreadable_config_is_no_config(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata={"config": "{half"})
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    assert open_checkpoint(tmp_path).config is None


# --- damaged ---


@pytest.mark.parametrize("keep", [-1, 100, 8, 3])
def test_truncated_safetensors(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    save_file(WEIGHTS, path)
    os.truncate(path, keep if keep > 0 else path.stat().st_size + keep)
    with pytest.raises(ValueError, match="cut.safetensors.*[Gg]et (it|the weights) again"):
        open_checkpoint(path)


def test_truncated_pickle(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(WEIGHTS, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="cut.pth: this torch file cannot be read.*get it again"):
        open_checkpoint(path)


@pytest.mark.parametrize("content, found", [
    (b"hello, these are not weights at all\n" * 40, "a text file .it begins 'hello, these are not weights a'"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "a Git LFS pointer"),
    (b"<!DOCTYPE html><html>404</html>", "a web page"),
    (bytes(range(128, 256)) * 9, "no known format"),
    (b"", "empty"),
])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_not_weights(tmp_path, content, found, ending):
    path = tmp_path / ("odd" + ending)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"odd{ending}: this (is|file is) .*{found}"):
        open_checkpoint(path)


def test_damaged_header(tmp_path):
    path = tmp_path / "odd.safetensors"
    for header in (b'{"a": [1, 2]}', b'{"a": {"dtype": "F32"}}', b"{nonsense"):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match="its header cannot be read"):
            open_checkpoint(path)
    header = b'{"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="a has the type F3"):
        open_checkpoint(path)
    save_file({}, path)
    with pytest.raises(ValueError, match="no tensors in this file"):
        open_checkpoint(path)


def entry(dtype="F32", shape=(2,), place=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


@pytest.mark.parametrize("header, size", [
    ({"a": entry(shape=(-2,))}, 8), ({"a": entry(place=(-8, 8))}, 8), ({"a": entry(place=(8, 0))}, 8),
    ({"a": entry(shape=(-1, -2))}, 8), ({"a": entry(shape=(2**63, 2**63))}, 8), ({"a": entry(shape=(2**70,))}, 8),
    ({"a": entry(shape=(0, 2**62, 2**62), place=(0, 0))}, 0), ({"a": entry(shape=(3,))}, 8), ({"a": entry("F64")}, 8),
    ({"a": entry(), "b": entry(place=(4, 12))}, 12),                 # overlapping
    ({"a": entry(), "b": entry(place=(12, 20))}, 20),                # with a hole
    ({"a": entry(place=(4, 12))}, 12), ({"a": entry(place=(0, 8, 8))}, 8), ({"a": entry(place=(8,))}, 8),
    ({"a": entry(shape=(2.0,))}, 8), ({"a": entry(shape=(True, 2))}, 8), ({"a": entry(shape=("2",))}, 8),
    ({"a": entry(dtype=None)}, 8), ({"a": entry(dtype=["F32"])}, 8), ({"a": entry(shape=[1] * 65)}, 4),
    ({"a": entry(), "__metadata__": {"config": 3}}, 8), ({"a": entry(), "__metadata__": ["x"]}, 8),
    ({"a": entry() | {"shape": 2}}, 8), ({"a": entry() | {"data_offsets": "08"}}, 8), ({"a": None}, 8)])
def test_sizes_that_cannot_be(tmp_path, header, size):
    """Refused where the header is read: torch would raise an error of its own, or read another tensor's bytes."""
    path = tmp_path / "odd.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(ValueError, match="odd.safetensors: .*The file is damaged: get it again"):
        open_checkpoint(path)


def test_a_header_nested_too_deep(tmp_path):
    path = tmp_path / "odd.safetensors"
    text = b'{"a": ' + b"[" * 100_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="its header cannot be read"):
        open_checkpoint(path)


def test_empty_tensors_and_any_order_are_sound(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"b": entry(place=(8, 16)), "none": entry(shape=(0, 7), place=(8, 8)), "a": entry(), "one": entry("U8", (), (16, 17))}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(17))
    loaded = open_checkpoint(path).load()
    assert {key: tuple(t.shape) for key, t in loaded.items()} == open_checkpoint(path).shapes


def test_a_tensor_in_two_shards(tmp_path):
    files = shards(tmp_path)
    save_file(WEIGHTS, files[1])
    with pytest.raises(ValueError, match="1 tensors are in two of its files"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
                                   "complex64"])
def test_numbers_that_are_none(dtype):
    dtype = getattr(torch, dtype)
    every = torch.arange(256, dtype=torch.uint8)
    if dtype.itemsize == 1:
        numbers = every.view(dtype)
    else:  # all exponents of either sign
        numbers = torch.cat([every.double().exp2(), -every.double().exp2(), (-every.double()).exp2()])
        numbers = (numbers.to(dtype) if dtype.is_complex else numbers.clamp(*(torch.finfo(dtype).min, torch.finfo(dtype).max)).to(dtype))
    finite = numbers.to(torch.complex128 if dtype.is_complex else torch.float64).isfinite()
    good = numbers[finite].repeat(8)
    check_finite({"good": good, "none": good[:0], "bytes": every, "meta": good.to("meta"), "sliced": good[1::3]}, "f")
    bad = [numbers[~finite]] if dtype.itemsize == 1 else [torch.tensor([x]).to(dtype) for x in (torch.nan, torch.inf, -torch.inf)]
    assert all(len(numbers) for numbers in bad)
    for x in torch.cat(bad):
        for place in (0, 5, len(good) - 1):
            broken = good.clone()
            broken.view(torch.uint8 if dtype.itemsize == 1 else dtype)[place] = x.view(torch.uint8) if dtype.itemsize == 1 else x
            with pytest.raises(ValueError, match="model.pth: c.scale holds NaN or infinite numbers.*get it again"):
                check_finite({"good": good, "c.scale": broken.reshape(2, -1)}, "model.pth")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def plain(content, path):
    path.write_bytes(pickle.dumps(content))


def old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, plain, old])
def test_pickle_never_runs_code(tmp_path, save):
    path, crater = tmp_path / "bomb.pth", tmp_path / "crater"
    save({"state_dict": {"a.weight": torch.ones(1), "b": Bomb(crater)}}, path)
    with pytest.raises(ValueError, match="bomb.pth: .*It was not run") as error:
        open_checkpoint(path)
    assert "mkdir" in str(error.value) or save.__name__ == "plain"  # torch names the function for its own protocol
    assert not crater.exists()


@pytest.mark.parametrize("content, found", [([1, 2], "a list"), ({"step": 1}, "a dictionary of step"),
                                            (torch.ones(2), "a Tensor"),
                                            ({0: torch.ones(2)}, "a dictionary of 0")])
def test_pickle_without_weights(tmp_path, content, found):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt: no tensors by name in this file .found {found}"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_dictionary_inside_itself_ends(tmp_path):
    content = {"step": 1}
    content["state_dict"] = content
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(ValueError, match="no tensors by name"):
        open_checkpoint(tmp_path / "loop.pt")


def test_numbered_tensors_beside_wrapped_weights(tmp_path):
    torch.save({"state_dict": WEIGHTS, 0: torch.ones(2)}, tmp_path / "model.pt")
    assert same(open_checkpoint(tmp_path / "model.pt").load())


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.safetensors: there is no such file"):
        open_checkpoint(tmp_path / "gone.safetensors")
    (tmp_path / "readme.md").write_text("words")
    with pytest.raises(FileNotFoundError, match=r"no weights in this folder .found readme.md., expected one of \*.safeten"):
        open_checkpoint(tmp_path)
    files = shards(tmp_path)
    files[0].unlink()
    for path in (tmp_path, files[1]):
        with pytest.raises(FileNotFoundError, match="of 2 files of this model 1 are missing.*model-00001-of-00002.safe"):
            open_checkpoint(path)


def test_index_of_another_download(tmp_path):
    files = shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["c.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 tensors that are in none of its files, such as c.weight"):
        open_checkpoint(index)
    # Shards that are all there need no index.
    for left in (json.dumps(content), "no json"):
        index.write_text(left)
        assert open_checkpoint(tmp_path).files == tuple(files)


def test_open_reads_no_weights(tmp_path):
    """A header that promises more than the file has is refused whatever size it names, before memory is asked for."""
    path = tmp_path / "huge.safetensors"
    header = b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="4,000,000,000,0.. after its header. The file is cut short"):
        open_checkpoint(path)


# Writing

LAYOUT = {key: (t.dtype, tuple(t.shape)) for key, t in WEIGHTS.items()} | {"scale": (torch.float64, ())}
WRITTEN = WEIGHTS | {"scale": torch.tensor(0.5, dtype=torch.float64)}


def test_a_written_file_is_read_by_safetensors_and_by_us(tmp_path):
    from safetensors import safe_open

    path = write_checkpoint(tmp_path / "new.safetensors", LAYOUT, reversed(WRITTEN.items()), {"config": '{"depth": 4}'})
    assert same(open_checkpoint(path).load(), WRITTEN) and open_checkpoint(path).config == {"depth": 4}
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("b.weight"), WEIGHTS["b.weight"]) and file.get_tensor("scale").shape == ()
    assert [file.name for file in tmp_path.iterdir()] == ["new.safetensors"]


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path):
    path = tmp_path / "new.safetensors"

    def broken_off():
        yield "a.weight", WEIGHTS["a.weight"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, LAYOUT, broken_off(), {})
    for tensors, message in ((WEIGHTS.items(), "did not come.*scale"), ([*WRITTEN.items()] * 2, "has come before"),
                             ([("a.weight", torch.zeros(2, 2))], r"a.weight.*\(2, 2\)"), ([("c", torch.zeros(1))], "announced")):
        with pytest.raises(ValueError, match=message):
            write_checkpoint(path, LAYOUT, tensors, {})
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwritten"):
        write_checkpoint(path, LAYOUT, WRITTEN.items(), {})
    assert path.read_text() == "mine"

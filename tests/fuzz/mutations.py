"""Damage of every kind to a model file, made from a seed."""

import io
import json
import random
from functools import cache

import torch
from safetensors.torch import load

ODD_VALUES = ["x", "", [], [3], {}, None, True, 2.5, -1, 0, 10**9, 10**30, -(10**30), float("nan"), float("inf"), "32", [None],
              1e-9]
ODD_SIZES = [-1, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**30, 2.0, "4", None, True, [], -(2**63)]
ODD_TYPES = ["F31", "", "f32", "I64", "BOOL", "F8_E4M3", "BF16", "F64", 4, None, [], "U8", "F4", "F32 "]


@cache
def parts(path):
    """(header, bytes behind it) of a safetensors file."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:end], raw[end:]


def joined(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def flipped(raw, rng, count=None):
    raw = bytearray(raw)
    for _ in range(count or rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def some_tensor(header, rng):
    return rng.choice(sorted(key for key in header if key != "__metadata__"))


def header_bytes(path, rng):
    text, data = parts(path)
    return joined(flipped(text, rng), data)


def header_length(path, rng):
    raw = joined(*parts(path))
    length = rng.choice([0, 1, 8, len(raw) - 8, len(raw), 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(len(raw))])
    return length.to_bytes(8, "little") + raw[8:]


def sizes(path, rng):
    text, data = parts(path)
    header = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        entry = header[some_tensor(header, rng)]
        numbers = entry[rng.choice(["shape", "data_offsets"])]
        value = rng.choice(ODD_SIZES)
        if numbers and rng.random() < 0.8:
            place = rng.randrange(len(numbers))
            near = rng.random() < 0.3 and isinstance(numbers[place], int)
            numbers[place] = numbers[place] + rng.choice([-1, 1, 64]) if near else value
        else:
            entry[rng.choice(["shape", "data_offsets"])] = rng.choice([value, [], [1] * 70, numbers * 2, {"a": 1}])
    return joined(header, data)


def types(path, rng):
    text, data = parts(path)
    header = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        header[some_tensor(header, rng)]["dtype"] = rng.choice(ODD_TYPES)
    return joined(header, data)


def entries(path, rng):
    """Parts of the header of another kind than they are."""
    text, data = parts(path)
    header = json.loads(text)
    key = rng.choice(["__metadata__", some_tensor(header, rng)])
    header[key] = rng.choice([*ODD_VALUES, {"config": 3}, {"dtype": "F32"}])
    return joined(header, data)


def length(path, rng):
    raw = joined(*parts(path))
    return raw[:rng.randrange(len(raw))] if rng.random() < 0.8 else raw + bytes(rng.randint(1, 100))


def names(path, rng):
    text, data = parts(path)
    header = json.loads(text)
    keys = [some_tensor(header, rng) for _ in range(rng.randint(1, 4))]
    for key in keys:
        new = rng.choice([key + "x", key.replace(".weight", ".bias"), "module." + key, key[1:], key.replace(".0.", ".7."), "",
                          key.replace(".", "_"), key.replace("1", "99999999999"), some_tensor(header, rng)])
        header[new] = header.pop(key, header[some_tensor(header, rng)])
    return joined(header, data)


def _written(path, change):
    """A sound file of changed tensors."""
    header, data, end = {}, [], 0
    metadata = json.loads(parts(path)[0]).get("__metadata__")
    if metadata:
        header["__metadata__"] = metadata
    for key, (name, shape, content) in change.items():
        header[key] = {"dtype": name, "shape": shape, "data_offsets": [end, end + len(content)]}
        data.append(content)
        end += len(content)
    return joined(header, b"".join(data))


def _tensors(path):
    text, data = parts(path)
    return {key: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for key, entry in json.loads(text).items() if key != "__metadata__"}


def tensors_missing(path, rng):
    tensors = _tensors(path)
    for _ in range(rng.choice([1, 1, 2, len(tensors) - 1])):
        tensors.pop(rng.choice(sorted(tensors)))
    return _written(path, tensors)


def shapes(path, rng):
    """Sound files whose tensors have other shapes, of as many numbers."""
    tensors = _tensors(path)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(sorted(tensors))
        name, shape, content = tensors[key]
        others = [shape[::-1], [1, *shape], [*shape, 1], [torch.Size(shape).numel()], shape[1:] + shape[:1]]
        tensors[key] = name, rng.choice(others), content
    return _written(path, tensors)


def empty_tensors(path, rng):
    tensors = _tensors(path)
    key = rng.choice(sorted(tensors))
    tensors[key] = tensors[key][0], rng.choice([[0], [0, 4], [4, 0, 2**40], [0] * 4]), b""
    return _written(path, tensors)


def not_finite(path, rng):
    text, data = parts(path)
    header, data = json.loads(text), bytearray(data)
    for _ in range(rng.randint(1, 3)):
        entry = header[some_tensor(header, rng)]
        start, end = entry["data_offsets"]
        codes = {"F32": [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"], "F16": [b"\0\x7e", b"\0\x7c", b"\0\xfc"],
                 "BF16": [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"]}.get(entry["dtype"])
        if codes and end > start:
            code = rng.choice(codes)
            place = start + len(code) * rng.randrange((end - start) // len(code))
            data[place:place + len(code)] = code
    return joined(text, bytes(data))


def weights(path, rng):
    text, data = parts(path)
    return joined(text, flipped(data, rng, 200))


def config(path, rng):
    """A value of the config in the file that is of another kind, or out of all proportion."""
    text, data = parts(path)
    header = json.loads(text)
    metadata = header.setdefault("__metadata__", {})
    values = json.loads(metadata.get("config", "{}"))
    for _ in range(rng.randint(1, 2)):
        if values:
            values[rng.choice(sorted(values))] = rng.choice(ODD_VALUES)
    metadata["config"] = json.dumps(values) if rng.random() < 0.9 else rng.choice(["[]", "3", "{", "null", "[" * 5000])
    return joined(header, data)


@cache
def _pickled(path, zipped):
    out = io.BytesIO()
    torch.save({"state_dict": load(path.read_bytes()), "step": 3}, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def pickles(path, rng):
    raw = _pickled(path, rng.random() < 0.7)
    kind = rng.random()
    if kind < 0.3:
        return raw[:rng.randrange(len(raw))]
    if kind < 0.6:
        return flipped(raw, rng, 300)
    near = rng.choice([slice(0, 4000), slice(len(raw) - 4000, len(raw))])  # where the pickle and the zip's directory are
    return raw[:near.start] + flipped(raw[near], rng) + raw[near.stop:]


def zeros(path, rng):
    raw = bytearray(joined(*parts(path)))
    start = rng.choice([0, 8, rng.randrange(len(raw))])
    end = min(len(raw), start + rng.choice([1, 100, 10_000]))
    return bytes(raw[:start]) + bytes(end - start) + bytes(raw[end:])


MUTATIONS = (header_bytes, header_length, sizes, types, entries, length, names, tensors_missing, shapes, empty_tensors,
             not_finite, weights, pickles, zeros, config)


def mutated(path, mutation, seed: int) -> bytes:
    """The file's content after `mutation`, one of MUTATIONS; the same for the same seed."""
    return mutation(path, random.Random(f"{mutation.__name__} {path.name} {seed}"))

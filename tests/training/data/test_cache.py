"""The cache: keys of content and settings, entries whole or absent, changed files seen."""

import json
import os
import time

import pytest
import torch

from sanacog.training.data import cache
from sanacog.training.data.buckets import Bucket, cover
from sanacog.training.data.cache import Cache, Fingerprints

from . import corpus

PARTS = {"content": "ab", "model": "vae", "transform": {"bucket": [1, 64, 96], "scale": 0.41407}}


def test_a_key_is_of_all_its_parts_in_any_order():
    assert cache.key(PARTS) == cache.key(dict(reversed(PARTS.items()))) and len(cache.key(PARTS)) == 64
    others = [{**PARTS, "content": "ac"}, {**PARTS, "model": "w"}, {**PARTS, "new": None},
              {**PARTS, "transform": {"bucket": [1, 64, 96], "scale": 0.41408}}]
    assert len({cache.key(parts) for parts in [PARTS, *others]}) == 5
    with pytest.raises(TypeError):
        cache.key({"dtype": torch.float16})
    with pytest.raises(ValueError):
        cache.key({"scale": float("nan")})


def test_a_key_does_not_change_from_run_to_run():
    assert cache.key({"a": 1, "b": "ü"}) == "929775b8479d16d37568fa78e3a3393e97d72f1d46a5239bebf7721f7e85ec3c"


def test_what_is_part_of_a_transform():
    one, clip = cover(64, 128, Bucket(1, 64, 96)), cover(64, 128, Bucket(9, 64, 96))
    made = cache.transform(one)
    assert made == {"bucket": [1, 64, 96], "resize": [64, 128], "crop": [0, 16]} == cache.transform(one, 8, "slide", 2)
    assert len({json.dumps(cache.transform(clip, *parts)) for parts in [
        (), (8,), (8, "slide"), (8, "slide", 1), (8, "slide", 1, True)]}) == 5


def test_tensors_come_back_as_they_were(tmp_path):
    store, key = Cache(tmp_path / "c"), cache.key(PARTS)
    assert store.get(key) is None and key not in store and list(store.index()) == [] and store.stale(set()) == []
    tensors = {"mean": torch.randn(16, 3, 8, 12).bfloat16(), "mask": torch.ones(300, dtype=torch.bool),
               "states": torch.randn(4, 6).T}
    store.put(key, tensors, {"model": "vae", "file": "ü.png"})
    found = store.get(key)
    assert found.keys() == tensors.keys() and all(torch.equal(found[n], tensors[n]) and found[n].dtype == tensors[n].dtype
                                                  for n in tensors)
    assert key in store and list(Cache(tmp_path / "c").index()) == [(key, {"model": "vae", "file": "ü.png"})]
    assert len(list((tmp_path / "c").rglob("*.*"))) == 1


def test_a_write_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    store, key = Cache(tmp_path), cache.key(PARTS)

    def save(tensors, path, about):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.safetensors.torch, "save_file", save)
    with pytest.raises(KeyboardInterrupt):
        store.put(key, {"a": torch.ones(3)}, {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] and store.get(key) is None


@pytest.mark.parametrize("keep", [0, 5, 60, -4])
def test_half_a_file_is_none(tmp_path, keep):
    store, key, other = Cache(tmp_path), cache.key(PARTS), cache.key({})
    for name in (key, other):
        store.put(name, {"latent": torch.ones(32, 4, 4)}, {"model": "vae"})
    path = store.path(key)
    path.write_bytes(path.read_bytes()[:keep])
    assert store.get(key) is None and key not in store
    assert [name for name, _ in store.index()] == [other]
    assert store.stale({key, other}) == [path]  # it is wanted, and still of no use
    store.put(key, {"latent": torch.zeros(2)}, {})
    assert torch.equal(store.get(key)["latent"], torch.zeros(2)) and store.stale({key, other}) == []


def test_what_nobody_wants_is_listed(tmp_path):
    store = Cache(tmp_path)
    keys = [cache.key({"n": n}) for n in range(4)]
    for key in keys:
        store.put(key, {"a": torch.ones(1)}, {})
    remains = store.path(keys[0]).with_suffix(".12.part")
    remains.write_bytes(b"x")
    assert set(store.stale(set(keys[:2]))) == {store.path(keys[2]), store.path(keys[3]), remains}
    assert all(store.get(key) for key in keys)  # listed, not removed


def test_a_changed_file_is_seen_and_an_unchanged_one_not_read(tmp_path, monkeypatch):
    path = corpus.picture(tmp_path / "a.png")
    past = time.time() - 100
    os.utime(path, (past, past))
    prints = Fingerprints(tmp_path / "c" / "files.json")
    first = prints.sha256(tmp_path, "a.png")
    prints.save()

    again = Fingerprints(tmp_path / "c" / "files.json")
    with monkeypatch.context() as patch:
        patch.setattr(cache.contents, "sha256_of", lambda *parts: pytest.fail("it was read"))
        assert again.sha256(tmp_path, "a.png") == first

    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the same size
    path.write_bytes(content)
    assert again.sha256(tmp_path, "a.png") != first


def test_a_file_that_changed_just_now_is_not_relied_on(tmp_path):
    path = corpus.picture(tmp_path / "a.png")
    stat = path.stat()
    prints = Fingerprints(tmp_path / "files.json")
    first = prints.sha256(tmp_path, "a.png")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # changed within one tick of the clock
    assert prints.sha256(tmp_path, "a.png") != first
    (tmp_path / "files.json").write_text("{broken")
    assert Fingerprints(tmp_path / "files.json").known == {}


def test_folders_of_pictures_have_prints(tmp_path):
    (tmp_path / "c").mkdir()
    for n in range(3):
        corpus.picture(tmp_path / "c" / f"{n}.png", corpus.grey(n))
    prints = Fingerprints(tmp_path / "files.json")
    first = prints.sha256(tmp_path, "c")
    (tmp_path / "c" / "2.png").rename(tmp_path / "c" / "9.png")
    renamed = prints.sha256(tmp_path, "c")
    (tmp_path / "c" / "9.png").unlink()
    assert len({first, renamed, prints.sha256(tmp_path, "c")}) == 3

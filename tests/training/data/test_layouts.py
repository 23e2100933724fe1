"""Layouts: each is recognised and named, gives the rows that it says, and what is wrong in it is said."""

import io
import json
import os
import tarfile

import pytest

from sanacog.training.data import contents, layouts, manifest, media
from sanacog.training.data.buckets import Bucket, place
from sanacog.training.data.manifest import Row

from . import corpus


def write(folder, files):
    """{name: text or bytes; None for a file of a picture's or clip's name without content}."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else (content or "").encode())
    return folder


def read(source):
    """(rows, log) with the rows by file."""
    log = []
    rows = layouts.read_source(source, log.append)
    return {row.file: row for row in rows}, log


def captions(source):
    return {file: row.captions for file, row in read(source)[0].items()}


# --- same-stem, kohya, bare ---


def test_same_stem_captions(tmp_path):
    write(tmp_path, {"b.png": None, "b.txt": "a picture\r\n", "sub/ü 2.MP4": None,
                     "sub/ü 2.caption": "\ufeffa clip\nof two lines\n", "10.jpg": None, "9.jpg": None,
                     "9.txt": "", ".hidden.png": None, ".git/x.png": None, "notes.txt": "not one"})
    rows, log = read(tmp_path)
    assert list(rows) == ["9.jpg", "10.jpg", "b.png", "sub/ü 2.MP4"]
    assert rows["b.png"] == Row("b.png", "image", captions=["a picture"])
    assert rows["sub/ü 2.MP4"] == Row("sub/ü 2.MP4", "video", captions=["a clip\nof two lines"])
    assert rows["10.jpg"].captions == [] and rows["9.jpg"].captions == [""]
    assert log == ["layout: same-stem captions, 4 files"]
    assert layouts.folder_of(tmp_path) == tmp_path


def test_captions_in_utf16_and_in_no_known_letters(tmp_path):
    write(tmp_path, {"a.png": None, "a.txt": "ünicode".encode("utf-16")})
    assert captions(tmp_path) == {"a.png": ["ünicode"]}
    write(tmp_path, {"a.txt": b"caf\xe9"})
    with pytest.raises(ValueError, match="a.txt: not UTF-8"):
        read(tmp_path)


def test_a_folder_of_pictures_with_a_caption_is_a_clip(tmp_path):
    write(tmp_path, {"clip/1.png": None, "clip/2.png": None, "clip.txt": "it moves", "other/1.png": None, "other/1.txt": "still"})
    rows, _ = read(tmp_path)
    assert rows == {"clip": Row("clip", "video", captions=["it moves"]),
                    "other/1.png": Row("other/1.png", "image", captions=["still"])}


def test_files_alone(tmp_path):
    rows, log = read(write(tmp_path, {"a.webp": None, "x/b.mkv": None, "readme.md": "words"}))
    assert {file: row.kind for file, row in rows.items()} == {"a.webp": "image", "x/b.mkv": "video"}
    assert log == ["layout: files without captions, 2 files"]


def test_names_that_look_like_members(tmp_path):
    rows, _ = read(write(tmp_path, {"a::b.png": None, "a::b.txt": "odd", "photo.heic": None}))
    assert list(rows) == ["a::b.png", "photo.heic"] and contents.locate(tmp_path, "a::b.png") == tmp_path / "a::b.png"
    assert media.probe_row(rows["photo.heic"], tmp_path).reasons == ["file.empty"]


def test_links_are_followed_once(tmp_path, monkeypatch):
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: sorted(scan(place), key=lambda entry: entry.name))
    write(tmp_path, {"in/real/a.png": None, "out/b.png": None, "out/deep/c.png": None})
    (tmp_path / "in" / "0 link").symlink_to(tmp_path / "in" / "real")  # sorted before the folder itself
    (tmp_path / "in" / "again.png").symlink_to(tmp_path / "in" / "real" / "a.png")
    (tmp_path / "in" / "far").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "deep" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b2.png").symlink_to(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = set(read(tmp_path / "in")[0])
    assert found == {"real/a.png", "far/b.png", "far/deep/c.png", "broken.png"}


def test_links_into_a_store_of_contents(tmp_path):
    """As downloads of the Hub lie: equal files are links to one, and each is still a row with its caption."""
    write(tmp_path, {"blobs/1": "picture", "blobs/2": "words", "set/.keep": None})
    for name, blob in {"a.png": 1, "b.png": 1, "a.txt": 2, "b.txt": 2}.items():
        (tmp_path / "set" / name).symlink_to(tmp_path / "blobs" / str(blob))
    assert captions(tmp_path / "set") == {"a.png": ["words"], "b.png": ["words"]}


def test_kohya_folders(tmp_path):
    write(tmp_path, {"10_sks dog/1.png": None, "10_sks dog/1.txt": "a dog on grass", "10_sks dog/2.png": None,
                     "2_cat/x/3.png": None})
    rows, log = read(tmp_path)
    assert rows["10_sks dog/1.png"] == Row("10_sks dog/1.png", "image", captions=["a dog on grass"], repeats=10)
    assert rows["10_sks dog/2.png"].captions == ["sks dog"] and rows["2_cat/x/3.png"].repeats == 2
    assert log == ["layout: kohya N_name folders, 3 files"]


@pytest.mark.parametrize("other", ["2024_holiday/x.png", "loose.png", "cat/x.png"])
def test_folders_that_are_not_all_kohyas_have_no_repeats(tmp_path, other):
    rows, log = read(write(tmp_path, {"10_dog/1.png": None, "10_dog/1.txt": "a dog", other: None}))
    assert {row.repeats for row in rows.values()} == {1} and log[-1] == "layout: same-stem captions, 2 files"


# --- tables ---


def test_metadata_jsonl(tmp_path):
    write(tmp_path, {"metadata.jsonl": "\n".join(json.dumps(record) for record in [
        {"file_name": "sub/a.png", "caption": "one", "repeats": 3, "width": 7},
        {"file_name": "b.mp4", "text": ["two", "three"], "scores": [28.0, 31.5], "image": "first.png"},
        {"file_name": "gone.png", "prompt": "lost"}, {"file_name": "frames", "caption": None},
        {"file_name": "x.dat"}]),
        "sub/a.png": None, "b.mp4": None, "first.png": None, "frames/1.png": None, "x.dat": None,
        "extra.png": None, "sub/a.txt": "other"})
    rows, log = read(tmp_path)
    assert rows["sub/a.png"] == Row("sub/a.png", "image", captions=["one"], repeats=3)
    assert rows["b.mp4"] == Row("b.mp4", "video", captions=["two", "three"], scores=[28.0, 31.5], image="first.png")
    assert rows["gone.png"] == Row("gone.png", "image", captions=["lost"], status="error", reasons=["file.missing"])
    assert rows["frames"] == Row("frames", "video")
    assert (rows["x.dat"].status, rows["x.dat"].reasons) == ("error", ["file.unreadable"])
    assert len(log) == 4 and "could also be read as same-stem captions" in log[0]
    assert "1 files are left out" in log[1] and "extra.png" in log[1] and "1 files that" in log[2] and "gone.png" in log[2]
    assert log[3] == "layout: metadata.jsonl, .csv or .parquet, 5 files"


def test_metadata_csv_and_tables_of_subfolders(tmp_path):
    write(tmp_path, {"x/metadata.csv": 'file_name,caption,caption_2,model\na.png,"red, round",42,blip\n"ü b.png","two\nlines",,\n',
                     "x/a.png": None, "x/ü b.png": None, "y/metadata.jsonl": '{"file_name": "../x/c.png", "text": "three"}\n',
                     "x/c.png": None})
    assert captions(tmp_path) == {"x/a.png": ["red, round", "42"], "x/ü b.png": ["two\nlines", ""], "x/c.png": ["three"]}


def test_metadata_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    write(tmp_path, {"a.png": None, "c.png": None})
    table = pyarrow.table({"image": ["a.png"], "captions": [["one", "two"]], "clip_score": [[30.0, 20.0]],
                           "conditioning_image": ["c.png"]})
    pyarrow.parquet.write_table(table, tmp_path / "metadata.parquet")
    assert read(tmp_path)[0] == {"a.png": Row("a.png", "image", captions=["one", "two"], scores=[30, 20], image="c.png")}
    # A table may be named itself, by any name.
    (tmp_path / "metadata.parquet").rename(tmp_path / "train.parquet")
    assert list(read(tmp_path / "train.parquet")[0]) == ["a.png"] and layouts.folder_of(tmp_path / "train.parquet") == tmp_path


@pytest.mark.parametrize("record, expected", [
    ({"caption": "a", "caption_model": "blip", "prompt": "another"}, (["a"], [])),
    ({"caption": "a", "vila": "b", "caption_score": 31, "vila_clipscore": "29.5"}, (["a", "b"], [31, 29.5])),
    ({"caption": "a", "vila": "b", "vila_score": 29}, (["a", "b"], [0, 29])),
    ({"captions": '["a", "b"]', "scores": "[30, 26]"}, (["a", "b"], [30, 26])),
    ({"text": "[draft] a"}, (["[draft] a"], [])), ({"text": "1e5"}, (["1e5"], [])),
    ({"captions": ["a", "b"], "scores": [1]}, (["a", "b"], [])),
    ({"text1": "a", "text2": "b", "textile": "wool"}, (["a", "b"], [])), ({"score": 3}, ([], []))])
def test_captions_and_scores_of_a_record(record, expected):
    from sanacog.training.data.tables import captions_and_scores

    assert captions_and_scores(record) == expected


@pytest.mark.parametrize("name, text, words", [
    ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": ', "metadata.jsonl:2: this is no JSON"),
    ("metadata.jsonl", '[1]', "metadata.jsonl:1: found [1], expected an object"),
    ("metadata.jsonl", '{"name": "a.png"}', "found name, expected a file in one of file_name"),
    ("metadata.jsonl", '{"file_name": "a.png"}\n\n{"file_name": "./a.png", "repeats": 2}',
     "metadata.jsonl:3: a.png has a row already"),
    ("metadata.jsonl", '{"file_name": "a.png", "repeats": 0}', "repeats is 0"),
    ("metadata.csv", "file_name,caption\na.png,red, round\n", "metadata.csv:2: this line has more columns"),
    ("metadata.csv", "file_name,caption\na.png\n", "metadata.csv:2: this line has fewer columns"),
    ("metadata.csv", b"file_name,caption\na.png,caf\xe9\n", "not UTF-8"),
    ("metadata.parquet", "words", "no Parquet file"),
    ("metadata.jsonl", "\n", "there is no row in it"),
    ("meta_data.json", '{"names": []}', 'expected "img_names"'),
    ("videos.txt", "a.png\nb.png", "prompts.txt has 1, videos.txt has 2"),
])
def test_what_is_wrong_in_a_layout_is_named(tmp_path, name, text, words):
    with pytest.raises(ValueError) as error:
        read(write(tmp_path, {"a.png": None, name: text} | ({"prompts.txt": "one"} if name == "videos.txt" else {})))
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_several_lines_for_a_file_are_several_captions(tmp_path):
    lines = [{"file_name": "a.png", "text": text, "score": score} for text, score in (("one", 30), ("two", 20), ("one", 10))]
    write(tmp_path / "t", {"a.png": None, "metadata.jsonl": "\n".join(map(json.dumps, lines))})
    assert read(tmp_path / "t")[0] == {"a.png": Row("a.png", "image", captions=["one", "two"], scores=[30, 20])}
    write(tmp_path / "l", {"a.mp4": None, "prompts.txt": "one\ntwo", "videos.txt": "a.mp4\na.mp4"})
    assert captions(tmp_path / "l") == {"a.mp4": ["one", "two"]}


# --- lists, labels, NVlabs ---


def test_thudm_lists(tmp_path):
    write(tmp_path, {"prompts.txt": "one\ntwo\n\n", "videos.txt": "videos/1.mp4\nvideos/2.mp4\n", "images.txt": "1.png\n2.png\n",
                     "videos/1.mp4": None, "videos/2.mp4": None, "1.png": None, "2.png": None})
    rows, log = read(tmp_path)
    assert rows["videos/2.mp4"] == Row("videos/2.mp4", "video", captions=["two"], image="2.png")
    assert log == ["layout: THUDM prompts.txt and videos.txt, 2 files"]
    (tmp_path / "prompts.txt").rename(tmp_path / "prompt.txt")
    (tmp_path / "videos/1.mp4").unlink()
    rows, log = read(tmp_path)
    assert rows["videos/1.mp4"].reasons == ["file.missing"] and rows["videos/2.mp4"].captions == ["two"]


def test_sat_labels(tmp_path):
    write(tmp_path, {"videos/a.mp4": None, "videos/s/b.mp4": None, "labels/a.txt": "first\nsecond\n", "labels/s/b.txt": "deep",
                     "videos/c.mp4": None})
    rows, log = read(tmp_path)
    assert {file: row.captions for file, row in rows.items()} == {
        "videos/a.mp4": ["first"], "videos/c.mp4": [], "videos/s/b.mp4": ["deep"]}
    assert log == ["layout: SAT videos/ and labels/, 3 files"]


def test_nvlabs_meta_data(tmp_path):
    write(tmp_path, {"meta_data.json": '{"img_names": ["1.png", "2", "3.jpg"]}', "1.png": None, "1.txt": "one\nmore", "2.png": None,
                     "2.txt": "two", "4.png": None})
    rows, log = read(tmp_path)
    assert {file: row.captions for file, row in rows.items()} == {"1.png": ["one"], "2.png": ["two"], "3.jpg": []}
    assert rows["3.jpg"].reasons == ["file.missing"] and log[-1] == "layout: NVlabs meta_data.json, 3 files"
    assert not any("same-stem" in line for line in log) and "4.png" in log[0]


# --- tars ---


def pack(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(tmp_path, number=5):
    return corpus.picture(tmp_path / "tmp.bin", corpus.grey(number), format="PNG").read_bytes()


def test_webdataset_tars(tmp_path):
    content = png(tmp_path)
    pack(tmp_path / "d/00.tar", {"a.png": content, "a.json": '{"prompt": "one", "height": 3}', "s/b.v2.jpg": b"x",
                                 "s/b.txt": "two\n", "c.txt": "no picture", ".hidden.png": b"x"})
    (tmp_path / "d/001.json").write_text('{"a": {"other": "of another tar"}}')
    pack(tmp_path / "d/01.tar", {"a.mp4": b"x", "a.png": content, "a.txt": "three"})
    (tmp_path / "d/00_vila.json").write_text(json.dumps({"a": {"vila": "uno"}, "b": {"vila": "dos"}}))
    (tmp_path / "d/00_vila_clipscore.json").write_text(json.dumps({"a": {"vila": 31.5, "prompt": 28}}))
    rows, log = read(tmp_path / "d")
    assert rows == {"00.tar::a.png": Row("00.tar::a.png", "image", captions=["one", "uno"], scores=[28, 31.5]),
                    "00.tar::s/b.v2.jpg": Row("00.tar::s/b.v2.jpg", "image", captions=["two", "dos"]),
                    "01.tar::a.mp4": Row("01.tar::a.mp4", "video", captions=["three"], image="01.tar::a.png")}
    assert log == ["layout: WebDataset tars, 3 files"]
    assert contents.locate(tmp_path / "d", "00.tar::a.png") == content
    row = media.probe_row(rows["00.tar::a.png"], tmp_path / "d")
    assert (row.width, row.height, row.status) == (96, 64, "ok")

    for source in ([tmp_path / "d/00.tar", tmp_path / "d/01.tar"], str(tmp_path / "d/0*.tar")):
        assert read(source)[0] == rows and layouts.folder_of(source) == tmp_path / "d"
    assert list(read(tmp_path / "d/01.tar")[0]) == ["01.tar::a.mp4"] and layouts.folder_of(tmp_path / "d/01.tar") == tmp_path / "d"


def test_tars_that_cannot_be_read(tmp_path):
    whole = pack(tmp_path / "a.tar", {"a.png": png(tmp_path) * 50})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "zip.tar").write_bytes(b"PK\3\4" * 300)
    pack(tmp_path / "none.tar", {"a.txt": "words"})
    pack(tmp_path / "bad.tar", {"a.png": b"x", "a.json": "{"})
    for name, words in (("cut", "cut short"), ("zip", "no tar that can be read"), ("none", "no picture or video"),
                        ("bad", "bad.tar::a.json: this is no JSON")):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / f"{name}.tar")
    with pytest.raises(FileNotFoundError, match="expected a tar"):
        read(tmp_path / "gone.tar")
    with pytest.raises(FileNotFoundError, match="pattern"):
        read(tmp_path / "x*.tar")
    with pytest.raises(ValueError, match="must be a .tar"):
        read([tmp_path / "a.tar", tmp_path])


# --- datasets ---


def test_a_saved_set_of_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "f").mkdir()
    for number in range(3):
        corpus.picture(tmp_path / "f" / f"{number}.png", corpus.grey(number))
    records = [{"file_name": f"{number}.png", "text": f"grey {number}"} for number in range(3)]
    write(tmp_path / "f", {"metadata.jsonl": "\n".join(map(json.dumps, records))})
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "f"), cache_dir=str(tmp_path / "cache"))
    loaded.save_to_disk(str(tmp_path / "saved"))
    rows, log = read(tmp_path / "saved")
    assert [row.captions for row in rows.values()] == [["grey 0"], ["grey 1"], ["grey 2"]]
    assert list(rows)[2] == "saved::train/2/image" and log == ["layout: saved `datasets` set, 3 files"]
    folder = layouts.folder_of(tmp_path / "saved")
    row = media.probe_row(rows["saved::train/2/image"], folder)
    assert (row.width, row.height) == (96, 64)
    drawn = media.load(row, place(row, [Bucket(1, 64, 96)]), folder)
    assert corpus.number_of(((drawn[:, 0] + 1) * 127.5).permute(1, 2, 0).numpy()) == 2
    assert contents.stamp_of(folder, row.file)


def test_a_saved_set_of_clips_and_one_of_neither(tmp_path):
    datasets = pytest.importorskip("datasets")
    corpus.clip(tmp_path / "a.mp4", 9)
    made = datasets.Dataset.from_dict({"video": [str(tmp_path / "a.mp4")], "image": [str(corpus.picture(tmp_path / "a.png"))],
                                       "caption": ["one"]})
    made = made.cast_column("video", datasets.Video(decode=False)).cast_column("image", datasets.Image(decode=False))
    made.save_to_disk(str(tmp_path / "one"))
    rows, _ = read(tmp_path / "one")
    row = rows["one::train/0/video"]
    assert row == Row("one::train/0/video", "video", captions=["one"], image="one::train/0/image")
    assert media.probe_row(row, tmp_path).frames == 9
    assert media.load_picture(row.image, tmp_path, Bucket(9, 32, 48)).shape == (3, 1, 32, 48)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"no column has pictures or clips; it has text \(string\)"):
        read(tmp_path / "none")


def test_a_set_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"image": [str(corpus.picture(tmp_path / "a.png"))], "text": ["one"]})
    asked = []

    def load_dataset(name, revision):
        asked.append((name, revision))
        if name != "owner/pets":
            raise ConnectionError("no network")
        return datasets.DatasetDict({"test": made, "train": made.cast_column("image", datasets.Image())})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    contents.dataset.cache_clear()
    rows, log = read("owner/pets@v1")
    row = rows["hf:owner/pets@v1::train/0/image"]
    assert asked == [("owner/pets", "v1")] and row.captions == ["one"]
    assert "taken for a set of the Hub" in log[0] and "test is left out" in log[1]
    assert media.probe_row(row, layouts.folder_of("owner/pets@v1")).width == 60
    with pytest.raises(ValueError, match="hf:pets: datasets cannot load this: no network"):
        read("hf:pets")
    contents.dataset.cache_clear()


# --- a manifest, and what is none of these ---


def test_a_manifest(tmp_path):
    row = Row("a.png", "image", "ab", 60, 40, captions=["one"])
    manifest.write(tmp_path / "manifest.jsonl", [row])
    write(tmp_path, {"a.png": None, "a.txt": "other", "b.png": None})
    for source in (tmp_path, tmp_path / "manifest.jsonl"):
        rows, log = read(source)
        assert list(rows.values()) == [row] and log[-1].startswith("layout: manifest") and layouts.folder_of(source) == tmp_path
    (tmp_path / "manifest.jsonl").rename(tmp_path / "mine.jsonl")
    assert list(read(tmp_path / "mine.jsonl")[0].values()) == [row]


def test_nothing_that_is_known(tmp_path):
    with pytest.raises(ValueError) as error:
        read(write(tmp_path, {"a.docx": None, "b.docx": None, "Makefile": None}))
    assert "2 x .docx, 1 x no ending" in str(error.value) and "SAT videos/ and labels/" in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(tmp_path / "gone")
    with pytest.raises(ValueError, match="no data set that is known"):
        read(tmp_path / "a.docx")
    os.makedirs(tmp_path / "empty")
    with pytest.raises(ValueError, match="found nothing"):
        read(tmp_path / "empty")

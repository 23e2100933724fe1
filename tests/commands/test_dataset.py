"""python run.py dataset, from a folder to the manifest, the report and the sheet; with forty faults and more planted."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from sanacog.commands import dataset
from sanacog.training.data import manifest, preparation, report
from sanacog.training.data.reasons import CODES

from ..training.data import drawn, faults

BUCKETS = [part for bucket in faults.BUCKETS for part in ("--bucket", "x".join(map(str, bucket)))]


def run(source, output, *arguments):
    return dataset.main([str(source), "--output", str(output), *BUCKETS, *arguments])


def rows_in(output):
    return {Path(row.file).name: row for row in manifest.read(output / "manifest.jsonl")}


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """(folder with faults, what they are, folder that the command wrote, its exit status)"""
    folder = tmp_path_factory.mktemp("faulty")
    planted = faults.plant(folder)
    before = content(folder)
    output = folder.parent / "faulty_out"
    status = run(folder, output, "--trigger", "sks", "--model", "cogvideox")
    assert content(folder) == before  # the source stays as it is
    return folder, planted, output, status


def test_forty_faults_are_found_and_none_invented(faulty):
    folder, planted, output, status = faulty
    assert len(planted) >= 40
    assert set(CODES) - set(planted.values()) == {"file.missing", "picture.no_bucket", "set.same_caption"}  # see below
    rows = manifest.read(output / "manifest.jsonl")
    found = {(output / row.file).resolve().relative_to(folder.resolve()).as_posix(): row.reasons for row in rows}
    assert len(found) == len(planted) + faults.PICTURES + faults.CLIPS
    assert {name: codes for name, codes in found.items() if codes} == {name: [code] for name, code in planted.items()}
    assert status == 1


def test_the_manifest_says_what_the_report_says(faulty):
    folder, planted, output, _ = faulty
    rows = rows_in(output)
    for name, code in planted.items():
        assert rows[Path(name).name].status == CODES[code].severity
    clip, picture = rows["clean_clip_0.mp4"], rows["clean_0.jpg"]
    assert (clip.kind, clip.width, clip.height, clip.frames, clip.fps, clip.duration) == ("video", 96, 64, 17, 8.0, 2.125)
    assert (picture.kind, picture.width, picture.frames, picture.fps, picture.status) == ("image", 320, 1, None, "ok")
    text = (output / "report.md").read_text("utf-8")
    assert "60 rows: 37 pictures, 23 clips" in text and "13 are fine" in text
    for name, code in planted.items():
        assert f"`{rows[Path(name).name].file}`" in text.split(f"### {code}\n")[1].split("###")[0]
    assert "| 256 x 256 | 1 | 33 | 1 | 1.7% |" in text
    with Image.open(output / "contact_sheet.jpg") as sheet:
        assert sheet.width == report.GAP + report.COLUMNS * (report.THUMBNAIL + report.GAP) and sheet.height > 1000


def test_what_was_read_once_is_not_read_again(faulty, monkeypatch):
    folder, _, output, _ = faulty
    before = content(output)
    read = []
    look_at = preparation.look_at
    monkeypatch.setattr(preparation, "look_at", lambda output, file, kind:
                        read.append(Path(file).name) or look_at(output, file, kind))
    run(folder, output, "--trigger", "sks", "--model", "cogvideox")
    assert read == [] and content(output)[output / "manifest.jsonl"] == before[output / "manifest.jsonl"]
    path = folder / "clean 1.png"
    data = path.read_bytes()
    path.write_bytes(b"")
    run(folder, output, "--trigger", "sks", "--model", "cogvideox")
    assert read == ["clean 1.png"] and rows_in(output)["clean 1.png"].reasons == ["file.empty"]
    path.write_bytes(data)


def test_mending(faulty, tmp_path):
    folder, planted, *_ = faulty
    before = content(folder)
    run(folder, tmp_path, "--trigger", "sks", "--model", "cogvideox", "--fix")
    assert content(folder) == before
    reasons = {row.file: row.reasons for row in manifest.read(tmp_path / "manifest.jsonl") if row.reasons}
    mended = {"picture.black_bars", "caption.opening", "caption.markup", "caption.url", "caption.spaces", "caption.trigger",
              "caption.missing", "set.duplicate"}
    left = {code for codes in reasons.values() for code in codes}
    assert left == set(planted.values()) - mended
    rows = rows_in(tmp_path)
    assert rows["caption_opening.png"].captions == ["Sks in front of a shop"]
    assert rows["caption_trigger.png"].captions == ["sks, a chair on a lawn in summer"]
    assert rows["missing.png"].captions == ["sks"] and rows["missing.png"].reasons == ["caption.short"]
    assert len({"copy.jpg", "clean_0.jpg"} & set(rows)) == 1
    bars = next(row for row in rows.values() if row.file.startswith("mended/letterbox"))
    with Image.open(tmp_path / bars.file) as image, Image.open(folder / "letterbox.png") as original:
        assert image.tobytes() == original.crop((0, 40, 320, 280)).tobytes()
    clip = next(row for row in rows.values() if row.file.startswith("mended/pillarbox"))
    assert (clip.width, clip.height, clip.frames, clip.fps) == (96, 64, 17, 8.0) and clip.status == "ok"
    assert "black bars cropped" in (tmp_path / "report.md").read_text("utf-8")
    again = content(tmp_path)
    run(folder, tmp_path, "--trigger", "sks", "--model", "cogvideox", "--fix")
    assert content(tmp_path)[tmp_path / "manifest.jsonl"] == again[tmp_path / "manifest.jsonl"]


# --- small sets ---


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        drawn.picture(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a drawn picture, number {number}")
    return folder


def test_a_clean_folder(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "out") == 0
    assert "4 rows: 4 pictures, 0 clips. 4 are fine" in capsys.readouterr().out
    assert "Nothing." in (tmp_path / "out" / "report.md").read_text()


def test_warnings_that_are_meant_so(folder, tmp_path):
    Image.new("RGB", (320, 320), "red").save(folder / "0.png")
    (folder / "0.txt").write_text("red")
    for ignored, left in (([], ["picture.flat", "caption.short"]), (["--ignore", "picture.flat"], ["caption.short"]),
                          (["--ignore", "picture.flat", "--ignore", "caption.short"], [])):
        run(folder, tmp_path / "out", *ignored)
        row = rows_in(tmp_path / "out")["0.png"]
        assert row.reasons == left and row.status == ("warn" if left else "ok")


def test_other_languages_are_for_models_that_know_them(folder, tmp_path):
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"\u72d7 \u5728 \u8349\u5730 \u4e0a {number}", "utf-8")
    for model, reasons in (("sana-512", []), ("cogvideox", ["caption.script"])):
        assert run(folder, tmp_path / "out", "--model", model) == 0
        assert rows_in(tmp_path / "out")["0.png"].reasons == reasons


def test_usage(folder, tmp_path, capsys):
    assert run(tmp_path / "gone", tmp_path / "out") == 2
    assert "gone" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert run(tmp_path / "nothing", tmp_path / "out") == 2
    assert run(folder, tmp_path / "out", "--caption", "http://127.0.0.1:1/v1") == 2
    assert "give its name" in capsys.readouterr().err
    for wrong in (["--bucket", "9x64"], ["--frames-to-pictures", "0"], ["--model", "sdxl"], ["--ignore", "file.empty"]):
        with pytest.raises(SystemExit) as ended:
            run(folder, tmp_path / "out", *wrong)
        assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


def test_the_rest_of_the_codes(folder, tmp_path):
    for number in range(4):
        (folder / f"{number}.txt").write_text("the same words")
    drawn.write_clip(folder / "clip.mp4", drawn.frames(1))
    (folder / "clip.txt").write_text("a clip of its own")
    assert dataset.main([str(folder), "--output", str(tmp_path / "out"), "--bucket", "1x256x256"]) == 1
    rows = rows_in(tmp_path / "out")
    assert rows["clip.mp4"].reasons == ["picture.no_bucket"] and rows["0.png"].reasons == ["set.same_caption"]
    (folder / "2.png").unlink()
    assert run(tmp_path / "out" / "manifest.jsonl", tmp_path / "out") == 1
    assert rows_in(tmp_path / "out")["2.png"].reasons[:1] == ["file.missing"]


def test_files_in_a_tar(folder, tmp_path):
    drawn.write_clip(folder / "clip.mp4", [faults.framed(frame, (12, 0)) for frame in drawn.frames(1, size=(120, 64))])
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name in ("0.png", "clip.mp4"):
            archive.add(folder / name, f"part/{name}")
    rows = [manifest.Row(file=f"set.tar::part/{name}", kind=kind, captions=[f"drawn, in a tar: {kind}"])
            for name, kind in (("0.png", "image"), ("clip.mp4", "video"), ("gone.png", "image"))]
    manifest.write(tmp_path / "given.jsonl", rows)
    output = tmp_path / "out"
    for _ in range(2):
        assert run(tmp_path / "given.jsonl", output, "--fix") == 1
        picture, clip, gone = manifest.read(output / "manifest.jsonl")
        assert (picture.file, picture.width, picture.reasons) == ("../set.tar::part/0.png", 320, [])
        assert (clip.width, clip.frames, clip.reasons) == (96, 17, []) and (output / clip.file).is_file()
        assert gone.reasons == ["file.missing"]
    run(tmp_path / "given.jsonl", output, "--frames-to-pictures", "1")
    assert [row.kind for row in manifest.read(output / "manifest.jsonl")] == ["image"] * 5


def test_a_set_of_the_datasets_library(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    content = {"image": [str(folder / f"{n}.png") for n in range(3)], "text": [f"a drawn picture, number {n}" for n in range(3)]}
    datasets.Dataset.from_dict(content).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "saved", tmp_path / "out") == 0
    rows = manifest.read(tmp_path / "out" / "manifest.jsonl")
    assert [(row.width, row.captions) for row in rows] == [(320, [text]) for text in content["text"]]
    monkeypatch.setattr(preparation, "look_at", lambda *_: pytest.fail("it was read again"))
    assert run(tmp_path / "saved", tmp_path / "out") == 0


def test_first_pictures_are_named_from_the_output_too(folder, tmp_path):
    manifest.write(folder / "given.jsonl", [manifest.Row(file="0.png", kind="image", captions=["a drawn picture"], image="1.png")])
    assert run(folder / "given.jsonl", tmp_path / "deep" / "out") == 0
    (row,) = manifest.read(tmp_path / "deep" / "out" / "manifest.jsonl")
    assert (row.file, row.image) == ("../../set/0.png", "../../set/1.png")


def test_names_that_are_not_utf_8(folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    (folder / "0.png").unlink()
    table = tmp_path / "captions.csv"
    assert run(folder, tmp_path / "out", "--export-captions", str(table)) == 1  # for want of a caption
    table.write_bytes(table.read_bytes().replace(b"caf\xe9.png,,", b"caf\xe9.png,a drawing with a name,"))
    assert run(folder, tmp_path / "out", "--import-captions", str(table)) == 0


def test_captions_by_hand_stay(folder, tmp_path):
    output = tmp_path / "out"
    (folder / "3.txt").unlink()
    assert run(folder, output, "--export-captions", str(tmp_path / "captions.csv")) == 1
    table = (tmp_path / "captions.csv").read_text("utf-8-sig").replace("3.png,,", "3.png,a drawing by hand,")
    (tmp_path / "captions.csv").write_text(table, "utf-8")
    assert run(folder, output, "--import-captions", str(tmp_path / "captions.csv")) == 0
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    lines[0]["caption_manual"] = "written in the manifest itself"
    (output / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(folder, output, "--fix", "--trigger", "sks") == 0
    rows = rows_in(output)
    assert rows["0.png"].caption_manual == "written in the manifest itself" and rows["3.png"].caption_manual == "a drawing by hand"
    assert rows["1.png"].captions == ["sks, a drawn picture, number 1"]
    assert rows["0.png"].reasons == ["caption.trigger"]  # what a person wrote is told of and left alone


class Canned:
    model, revision, seed, batch_size = "canned", "1", 0, 2

    def __init__(self):
        self.shown = []

    def captions(self, rows, prompt):
        self.shown += [len(frames) for frames in rows]
        return ["This image shows a drawn thing" for _ in rows]


def test_rows_without_captions_get_one(folder, tmp_path, monkeypatch):
    output, canned = tmp_path / "out", Canned()
    monkeypatch.setattr(dataset, "captioner_of", lambda options: canned if options.caption else None)
    (folder / "1.txt").unlink()
    (folder / "2.txt").write_text(" ")
    (folder / "2.png").unlink()
    drawn.write_clip(folder / "2.mp4", drawn.frames(1))
    (folder / "broken.png").write_bytes(b"x")
    assert run(folder, output, "--caption", "canned", "--caption-frames", "5") == 1  # because of broken.png alone
    rows = rows_in(output)
    assert sorted(canned.shown) == [1, 5] and rows["2.mp4"].captions == []
    assert rows["1.png"].caption_auto["text"] == rows["2.mp4"].caption_auto["text"] == "This image shows a drawn thing"
    assert rows["1.png"].reasons == rows["2.mp4"].reasons == ["caption.opening"] and rows["0.png"].caption_auto is None
    run(folder, output, "--fix")  # they are kept without a model, and mended
    assert len(canned.shown) == 2 and rows_in(output)["1.png"].caption_auto["text"] == "A drawn thing"


def test_pictures_of_clips(tmp_path):
    folder, output = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    drawn.write_clip(folder / "clip.mp4", drawn.frames(1, 33, (320, 256)), fps=8)
    (folder / "clip.txt").write_text("a drawn clip, with a square")
    for _ in range(2):
        assert run(folder, output, "--frames-to-pictures", "1.5") == 0
        rows = manifest.read(output / "manifest.jsonl")
        assert [Path(row.file).name for row in rows] == ["000000.png", "000001.png", "000002.png"]
        assert all(row.kind == "image" and row.captions == ["a drawn clip, with a square"] and row.width == 320 for row in rows)


def test_the_page_has_the_codes_and_the_options():
    page = (dataset.ROOT / "docs" / "dataset.md").read_text("utf-8")
    assert "\n".join(report.table_of_codes()) in page
    for action in dataset.parser()._actions:
        assert not action.option_strings or action.option_strings[-1] == "--help" or action.option_strings[-1] in page
    for name in dataset.presets():
        assert f"`{name}`" in page

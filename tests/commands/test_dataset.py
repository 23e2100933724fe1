"""python run.py dataset, from a folder to the manifest, the report and the sheet; with forty faults and more planted."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sanacog.commands import dataset
from sanacog.training.data import manifest, report
from sanacog.training.data.reasons import CODES, ERROR

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
    assert len(planted) >= 40 and len(set(planted.values())) >= 40
    rows = manifest.read(output / "manifest.jsonl")
    found = {(output / row.file).resolve().relative_to(folder.resolve()).as_posix(): row.reasons for row in rows}
    assert len(found) == len(planted) + faults.PICTURES + faults.CLIPS
    assert {name: codes for name, codes in found.items() if codes} == {name: [code] for name, code in planted.items()}
    assert status == 1

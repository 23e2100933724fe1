"""`run.py evaluate` with a running ComfyUI: it draws, judges, and draws nothing twice."""

import json

import numpy as np
from PIL import Image

from sanacog.commands import evaluate
from sanacog.evaluation.drawn import judge, shapes


def test_the_embedded_sana(server, tmp_path):
    arguments = ["--workflow", "sana_quickstart", "--count", "3", "--best-of", "2", "--steps", "12", "--server", server.url,
                 "--output", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    names = [f"{i:04d}_{k}.png" for k in range(2) for i in range(3)]
    pictures = [np.array(Image.open(tmp_path / "drawn" / name)) / 255 for name in names]
    scenes = shapes.evaluation_scenes()[0][:3]
    seen = judge.agreement(pictures[:3], scenes)
    for name in ("colour", "background", "shape"):
        assert report["figures"]["first of each prompt"][name] == round(np.mean(seen[name]), 4)
    assert report["figures"]["best of 2"]["all"] >= report["figures"]["first of each prompt"]["all"]
    assert seen["colour"] == [True] * 3
    drawn = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "drawn").glob("*.png")}
    assert sorted(drawn) == sorted(names) and len({picture.tobytes() for picture in pictures}) == 6
    assert evaluate.main(arguments) == 0
    assert drawn == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "drawn").glob("*.png")}

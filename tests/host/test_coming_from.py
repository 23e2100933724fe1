"""docs/coming_from.md calls ComfyUI's own nodes and samplers by names that this ComfyUI has."""

import re

from sanacog.headless.installation import ROOT

PAGE = (ROOT / "docs" / "coming_from.md").read_text("utf-8")


def test_stock_nodes(server):
    named = set(re.findall(r"(?<![*\w])\*([^*\n]+)\*(?!\*)", PAGE))
    known = {name for key, node in server.object_info.items() for name in (key, node["display_name"])}
    assert {"KSampler", "VAE Decode"} <= named and named - known == set()


def test_samplers(server):
    row, = re.findall(r"^\| `scheduler` Euler.*$", PAGE, re.MULTILINE)
    inputs = server.object_info["KSampler"]["input"]["required"]
    samplers, schedulers = (inputs[name][0] for name in ("sampler_name", "scheduler"))
    named = re.findall(r"`(\w+)`", row)
    assert named[0] == "scheduler" and len(named) == 10
    assert set(named[1:-1]) <= set(samplers) and named[-1] in schedulers

"""A workflow's canvas as a small picture: its groups, nodes and links. For workflows that no embedded model can run."""

from __future__ import annotations

import json

from PIL import Image, ImageDraw, ImageFont

from ..app.graph import WORKFLOWS

WIDTH, MARGIN, FINER = 586, 10, 3  # px; drawn so much finer and scaled down, for smooth lines
GROUND, NODE, HEAD, EDGE, TEXT = "#222", "#353535", "#4a4a4a", "#111", "#ddd"
LINKS = {"MODEL": "#b39ddb", "CLIP": "#ffd500", "VAE": "#ff6e6e", "CONDITIONING": "#ffa931", "LATENT": "#ff9cf9", "IMAGE": "#64b5f6"}
OTHER_LINK = "#9a9"
TITLE, ROW = 30, 20  # canvas units: a node's title above it, and its sockets


def canvas(name: str) -> Image.Image:
    """WIDTH px wide, as high as the canvas asks for; notes are left out."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] != "MarkdownNote"}
    groups = workflow.get("groups", [])
    boxes = [group["bounding"] for group in groups] + [[*node["pos"], *node["size"]] for node in nodes.values()]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes) - TITLE
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    scale = FINER * (WIDTH - 2 * MARGIN) / (right - left)

    def at(x, y):
        return FINER * MARGIN + (x - left) * scale, FINER * MARGIN + (y - top) * scale

    picture = Image.new("RGB", (FINER * WIDTH, round((bottom - top) * scale) + 2 * FINER * MARGIN), GROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(9 * FINER)
    for group in groups:
        x, y, width, height = group["bounding"]
        tint = Image.blend(Image.new("RGB", (1, 1), GROUND), Image.new("RGB", (1, 1), group["color"]), 0.45).getpixel((0, 0))
        pen.rounded_rectangle((*at(x, y), *at(x + width, y + height)), 3 * FINER, tint)
        pen.text(at(x + 15, y - 4), group["title"], TEXT, font)
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        pen.rounded_rectangle((*at(x, y - TITLE), *at(x + width, y + height)), 2 * FINER, NODE, EDGE)
        pen.rounded_rectangle((*at(x, y - TITLE), *at(x + width, y)), 2 * FINER, HEAD)
    for _, source, out, goal, into, kind in workflow["links"]:
        if source in nodes and goal in nodes:
            a, b = nodes[source], nodes[goal]
            start = at(a["pos"][0] + a["size"][0], a["pos"][1] + ROW * (out + 0.5))
            end = at(b["pos"][0], b["pos"][1] + ROW * (into + 0.5))
            pen.line(_curve(start, end), LINKS.get(kind, OTHER_LINK), FINER)
    return picture.resize((WIDTH, picture.height // FINER), Image.Resampling.LANCZOS)


def _curve(start, end):
    """Points of the line that leaves and arrives level."""
    reach = max(abs(end[0] - start[0]) / 2, 20)
    corners = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    weights = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in (i / 24 for i in range(25))]
    return [tuple(sum(w * corner[axis] for w, corner in zip(each, corners)) for axis in (0, 1)) for each in weights]

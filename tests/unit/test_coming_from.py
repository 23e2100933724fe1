"""docs/coming_from.md names our nodes as the canvas does, and files of this repository that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "coming_from.md"
LINKS = re.findall(r"\[([^\]]+)\]\(([^)#]+)\)", PAGE.read_text("utf-8"))


def nodes():
    """{node id: display name} of the pack, from its sources."""
    found = {}
    for path in (ROOT / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            given = {k.arg: k.value.value for k in getattr(node, "keywords", []) if isinstance(k.value, ast.Constant)}
            if "node_id" in given:
                found[given["node_id"]] = given["display_name"]
    return found


@pytest.mark.parametrize("text, address", sorted(set(LINKS)))
def test_links(text, address):
    path = (PAGE.parent / address).resolve()
    assert path.is_file() and path.is_relative_to(ROOT), address
    if "/docs/SanaCog" in address:
        assert text == nodes()[path.stem]
    elif "/workflows/" in address:
        assert text == path.stem


def test_our_nodes_are_always_links():
    """A name of ours without its link would be checked by nothing. The first column of a table is other packs'."""
    assert len(nodes()) > 25 and len(LINKS) > 40
    rest = re.sub(r"^\|[^|]*\|", "|", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    bare = re.sub(r"\[[^\]]+\]\([^)]+\)", "", rest)
    assert [name for name in nodes().values() if name in bare] == []


def test_readme_shows_the_page():
    assert "(docs/coming_from.md)" in (ROOT / "README.md").read_text("utf-8")

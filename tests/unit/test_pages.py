"""Links between our pages, and to files, lead somewhere; the index of docs/ has all of them."""

import re

import pytest

from .test_layers import ROOT

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "README.md", ROOT / "bench" / "README.md",
         *sorted((ROOT / "web" / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page):
    """As GitHub makes them of headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def broken(page):
    """The links of a page, to what is in this repository, that lead nowhere."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for link in LINK.findall(text):
        address, _, anchor = link.partition("#")
        if address.startswith(("http:", "https:", "mailto:", "/")):
            continue
        target = page.parent / address if address else page
        if not target.exists() or anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert not list(broken(page))


def test_the_index_has_every_page():
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8")))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not pages - listed


def test_the_reader_sees_what_it_is_for(tmp_path):
    (tmp_path / "there.md").write_text("# Two words, really\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#two-words-really) [b](there.md#three) [c](gone.md) [d](#own)\n# Own\n```\n[e](in-code)\n```\n"
                    "[f](https://example.org/x)")
    assert list(broken(page)) == ["there.md#three", "gone.md"]

"""Rules for captions: each on what it is for and on what it must leave alone."""

import pytest

from sanacog.training.data import caption_rules
from sanacog.training.data.caption_rules import check, check_row, check_set, fix, repetition, script_of

CLEAN = [
    "a large red circle on a blue background",
    "a picture of a small box at the top",  # a style of its own, which the embedded models were trained on
    "A woman in a red coat walks her dog along the beach at dusk; waves break behind her, and the light is warm.",
    "photo of sks dog, 50mm, f/1.8, 16:9",
    "AT&T store at 5 * 3 metres, <sks> logo (new) [old], ratio (16:9)",
    "The scene is quiet: snow falls, and falls, and falls.",
    "Close-up of a hand-written sign, 'I am sorry', on a door",
    "A scene of the video game on a screen, seen from above",
    "na\u00efve caf\u00e9 fa\u00e7ade with one \u4e2d sign",
]


def codes(text, **settings):
    return [finding.code.removeprefix("caption.") for finding in check(text, **settings)]


@pytest.mark.parametrize("text", CLEAN)
def test_clean_captions_are_left_alone(text):
    assert codes(text) == [] and fix(text) == text


@pytest.mark.parametrize("text, code", [
    ("", "empty"), (" \n\t", "empty"), ("a cat", "short"),
    ("I'm sorry, but I can't help with that.", "refusal"), ("As an AI language model, I have no eyes", "refusal"),
    ("I cannot see the picture clearly enough", "refusal"), ("Please provide the image to describe", "refusal"),
    ("The video shows a dog on a lawn", "opening"), ("this short clip captures a dog in the sea", "opening"),
    ("In this image, we can see a dog asleep", "opening"), ("Here is a detailed caption for the picture: a dog asleep", "opening"),
    ("Sure! Here's a description: a dog asleep", "opening"), ("Caption: a dog on the lawn", "opening"),
    ("We see a dog that sleeps", "opening"),
    ("a <b>red</b> dog asleep", "markup"), ("a **red** dog asleep", "markup"), ("# Dog in the grass", "markup"),
    ("a dog, <lora:style:0.8>, asleep", "markup"), ("a (red:1.2) dog asleep", "markup"), ("a dog &amp; a cat", "markup"),
    ("a dog on grass<|im_end|>", "markup"), ("a [dog](page) on grass", "markup"),
    ("a dog on grass https://example.com/x.png?y", "url"), ("a dog on grass www.example.com", "url"),
    ("a dog  on grass", "spaces"), ("a dog\non grass", "spaces"), (" a dog on grass", "spaces"), ("a dog\u200b on grass", "spaces"),
    ("a dog DSC_0001.jpg on grass", "file_name"), ("clip-03.mp4 of a dog", "file_name"),
    ("\u0441\u043e\u0431\u0430\u043a\u0430 \u043d\u0430 \u0442\u0440\u0430\u0432\u0435", "script"),
    ("\u72d7 \u5728 \u8349\u5730 \u4e0a", "script"),
    ("a dog dog dog dog barks", "repeated"), ("on the grass a dog, on the grass a cat, on the grass a dog, on the grass a hen",
                                              "repeated"),
])
def test_what_each_rule_finds(text, code):
    assert codes(text) == [code]


def test_lengths_are_counted_or_estimated():
    text = " ".join(f"word{n}" for n in range(200))
    assert codes(text) == [] and codes(text, limit=caption_rules.T5_TOKENS) == ["long"]
    (found,) = check(text, limit=226)
    assert found.figure == 300 and "estimated" in found.sentence
    (found,) = check("three words here", limit=226, count=lambda text: 227)
    assert found.figure == 227 and "estimated" not in found.sentence
    assert codes(text, limit=226, count=lambda text: 226) == []


def test_the_trigger_word():
    assert codes("a photo of SKS, asleep", trigger="sks") == []
    assert codes("a photo of sksy asleep", trigger="sks") == ["trigger"]
    assert fix("a dog asleep", "sks") == "sks, a dog asleep"
    assert fix("The picture shows sks asleep", "sks") == "Sks asleep"
    assert fix("", "sks") == ""


@pytest.mark.parametrize("text, fixed", [
    ("The video shows a dog\n on grass .", "A dog on grass."),
    ("the video shows a dog", "a dog"),
    ("## Scene\n**A dog** on <i>grass</i>, see https://example.com/a.b.", "Scene A dog on grass, see"),
    ("Sure! Here is a caption: In this image, we can see a dog &amp; a cat.", "A dog & a cat."),
    ("&lt;b&gt;a dog&lt;/b&gt; asleep", "a dog asleep"),
    ("a (red:1.2) dog, <lora:style:0.8> asleep\u200b", "a red dog, asleep"),
    ("- a [dog](http://example.com) on `grass`", "a dog on grass"),
])
def test_mending(text, fixed):
    assert fix(text) == fixed and fix(fixed) == fixed
    assert not set(codes(fix(text))) & {"opening", "markup", "url", "spaces"}


def test_mending_never_leaves_an_opening_without_text():
    assert fix("The video shows ") == "The video shows"


def test_rows():
    assert [f.code for f in check_row([])] == ["caption.missing"]
    found = check_row(["a cat", "a dog", "the video shows a dog"])
    assert [(f.code, f.figure) for f in found] == [("caption.short", 2), ("caption.opening", None)]
    assert "'a cat'" in found[0].sentence


def test_the_same_caption_on_many_rows():
    captions = [["A  Cat asleep"], ["a cat asleep", "two"], ["a cat asleep"]] + [[f"row {n}"] for n in range(11)]
    found = check_set(captions)
    assert set(found) == {0, 1, 2} and found[1][0].code == "set.same_caption"
    assert "3 of 14 rows" in found[0][0].sentence
    assert check_set([*captions, ["another row"]]) == {}  # 3 of 15 are not more than a fifth
    assert check_set([["a cat"], ["a cat"]]) == {} and check_set([[], [], [], [""], [""], [""]]) == {}


def test_repetition():
    assert repetition("a red ball and a blue ball and a green ball".split()) is None
    assert repetition("very, very very very".split()) == ("very", 4)


def test_the_script_of_a_set():
    assert script_of([["\u72d7 \u732b \u9e1f"], ["ok"]]) == "CJK" and script_of([]) == "LATIN"
    assert codes("\u72d7 \u5728 \u8349\u5730 \u4e0a", script="CJK") == [] and codes("a dog asleep", script="CJK") == ["script"]

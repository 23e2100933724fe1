"""What can be seen to be wrong with a caption from its text alone, and what of it can be mended without a doubt."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from .reasons import Finding

T5_TOKENS, GEMMA_TOKENS = 226, 300  # what the text encoders of CogVideoX and Sana read
TOKENS_PER_WORD = 1.5  # estimate, on the safe side of English prose, where no tokenizer is given
FEWEST_WORDS = 3
REPEATED_WORDS, REPEATS = 4, 3  # so many words in a row, so often
STUTTER = 4  # one word so often in a row
FOREIGN_LETTERS = 0.3  # share of the letters
SAME_CAPTION, SAME_AT_LEAST = 0.2, 3  # share of the rows, and rows

_WHAT = r"(?:video|image|picture|photo(?:graph)?|clip|scene|footage|frame|animation)(?: clip| sequence| footage)?"
_DOES = (r"(?:shows?|depicts?|features?|displays?|captures?|presents?|showcases?|illustrates?|portrays?|contains?|"
         r"(?:begins|opens|starts) with|is of|consists of)")
_OPENINGS = re.compile(
    r"^\W*(?:"
    r"(?:sure|certainly|of course|absolutely)\s*[,.!:]\s*"
    r"|here(?:'s| is| are)\b[^.:\n]{0,60}:\s*"
    r"|(?:(?:detailed |video |image )*(?:caption|description|prompt))\s*:\s*"
    rf"|in (?:this|the) (?:\w+ )?{_WHAT}\s*,\s*(?:(?:we|you|one) (?:can )?(?:see|observe)s?\s+)?"
    rf"|(?:this|the) (?:\w+ )?{_WHAT} (?:clearly |vividly |prominently )?{_DOES}\s+"
    r"|(?:we|you) (?:can )?(?:see|observe)\s+"
    r")+", re.IGNORECASE)
_REFUSALS = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|^\W*i(?:'m| am) (?:very |truly )?(?:sorry|unable|not able|just an ai)\b"
    r"|\bi (?:can(?:no|'|\u2019)?t|could(?:n't| not)|do(?:n't| not)) "
    r"(?:see|view|describe|assist|help|provide|identify|access|comply)\b"
    r"|\b(?:no|without) (?:image|picture|video) (?:was|is|has been)? ?(?:provided|attached|given)\b"
    r"|\bplease (?:provide|upload|share) (?:the|an?|your) (?:image|picture|video)\b", re.IGNORECASE)
_URLS = re.compile(r"(?:https?://|www\.)[^\s)>\]]+", re.IGNORECASE)
_FILE_NAMES = re.compile(r"[\w\-]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|mp4|mov|mkv|webm|avi|m4v)\b", re.IGNORECASE)
_LINKS = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
_TAGS = (r"a|b|i|p|u|em|strong|br|hr|div|span|font|center|code|pre|sub|sup|h[1-6]|ul|ol|li|img|table|t[rdh]|body|html|"
         r"caption|think|answer|video|image")
# (what is found, what stays of it)
_MARKUP = (
    (_LINKS, r"\1"),
    (re.compile(rf"<\|[^|>]*\|>|</?s>|<(?:lora|hypernet|lyco):[^<>\n]*>|</?(?:{_TAGS})(?:\s[^<>\n]*)?/?>", re.IGNORECASE), " "),
    (re.compile(r"```\w*|`"), ""),
    (re.compile(r"^\s*#{1,6}\s+|^\s*[-*\u2022]\s+|^\s*>\s+", re.MULTILINE), ""),  # headings, lists, quotations
    (re.compile(r"(\*{1,3}|_{2,3})(?=\S)(.+?)(?<=\S)\1"), r"\2"),                # bold and italic
    (re.compile(r"[(\[]([^()\[\]:\n]+):\d+\.\d+[)\]]"), r"\1"),             # (word:1.2) of other front ends
)
_ENTITIES = re.compile(r"&(?:#\d+|#x[0-9a-f]+|amp|lt|gt|quot|nbsp|apos);", re.IGNORECASE)
_BAD_SPACES = re.compile(r"[^\S ]|  |[\x00-\x08\x0e-\x1f\x7f\ufeff\u200b]|^ | $")


def check(text: str, limit: int = GEMMA_TOKENS, count: Callable[[str], int] | None = None, trigger: str = "",
          script: str = "LATIN") -> list[Finding]:
    """What is wrong with one caption, in the order of reasons.CODES.

    limit: tokens that the text encoder reads. count: tokens of a text, by its tokenizer; without it they are estimated,
    and the sentence says so. trigger: a word that has to be there. script: of its letters, see `script_of`.
    """
    words = text.split()
    if not words:
        return [Finding("caption.empty", 0, "there is nothing in the caption but space")]
    found = []

    def add(code, figure, sentence):
        found.append(Finding(code, figure, sentence))

    if match := _REFUSALS.search(text):
        add("caption.refusal", None, f"the caption says {match[0]!r}")
    if len(words) < FEWEST_WORDS:
        add("caption.short", len(words), f"the caption is {text.strip()!r}: {len(words)} of at least {FEWEST_WORDS} words")
    tokens = count(text) if count else round(TOKENS_PER_WORD * len(words))
    if tokens > limit:
        about = "" if count else f" (estimated, {TOKENS_PER_WORD} a word)"
        add("caption.long", tokens, f"{tokens} tokens{about}, of which the text encoder reads {limit}")
    if repeated := repetition(words):
        add("caption.repeated", repeated[1], f"{repeated[0]!r} comes {repeated[1]} times")
    if match := _OPENINGS.match(text):
        add("caption.opening", None, f"the caption opens with {match[0].strip()!r}")
    if marked := _ENTITIES.search(text) or next((m for form, _ in _MARKUP if (m := form.search(text))), None):
        add("caption.markup", None, f"markup in the caption: {marked[0].strip()!r}")
    if match := _URLS.search(text):
        add("caption.url", None, f"an address in the caption: {match[0]!r}")
    if _BAD_SPACES.search(text.rstrip("\r\n")):
        add("caption.spaces", None, "line breaks, control characters or superfluous spaces in the caption")
    if match := _FILE_NAMES.search(_URLS.sub(" ", text)):
        add("caption.file_name", None, f"a file's name in the caption: {match[0]!r}")
    letters = scripts(text)
    share = 1 - letters[script] / max(letters.total(), 1) if letters else 0
    if share > FOREIGN_LETTERS:
        add("caption.script", share, f"{share:.0%} of the caption's letters are not {script.capitalize()}")
    if trigger and not _has_word(text, trigger):
        add("caption.trigger", None, f"{trigger!r} is not in the caption")
    return found


def check_row(captions: list[str], **settings) -> list[Finding]:
    """What is wrong with a row's captions: of each code, the first finding."""
    if not captions:
        return [Finding("caption.missing", 0, "there is no caption")]
    found = {}
    for text in captions:
        for finding in check(text, **settings):
            found.setdefault(finding.code, finding)
    return list(found.values())


def check_set(captions: list[list[str]]) -> dict[int, list[Finding]]:
    """{number of a row: findings} for a caption that stands on more than SAME_CAPTION of the rows. captions: a row each."""
    sets = [{" ".join(text.lower().split()) for text in texts} - {""} for texts in captions]
    counts = Counter(text for texts in sets for text in texts)
    found = {}
    for number, texts in enumerate(sets):
        most = max((counts[text] for text in texts), default=0)
        if most >= SAME_AT_LEAST and most > SAME_CAPTION * len(captions):
            found[number] = [Finding("set.same_caption", most / len(captions),
                                     f"{most} of {len(captions)} rows have the same caption as this one")]
    return found


def repetition(words: list[str]) -> tuple[str, int] | None:
    """(words, how often) where one word stutters, or a run of words comes again and again; None where nothing does."""
    plain = [word.strip(".,;:!?\"'()").lower() for word in words]
    run = 1
    for before, word in zip(plain, plain[1:]):
        run = run + 1 if word == before else 1
        if run >= STUTTER:
            return word, plain.count(word)
    runs = Counter(tuple(plain[i:i + REPEATED_WORDS]) for i in range(len(plain) - REPEATED_WORDS + 1))
    run, count = max(runs.items(), key=lambda item: item[1], default=((), 0))
    return (" ".join(run), count) if count >= REPEATS else None


def scripts(text: str) -> Counter:
    """How many letters of each script: {"LATIN": 12, "CYRILLIC": 3}."""
    return Counter(unicodedata.name(letter, "UNKNOWN").split(" ")[0] for letter in text if letter.isalpha())


def script_of(captions: list[list[str]]) -> str:
    """The script of most of a data set's letters; LATIN where there are none."""
    total = sum((scripts(text) for texts in captions for text in texts), Counter())
    return total.most_common(1)[0][0] if total else "LATIN"


def fix(text: str, trigger: str = "") -> str:
    """The caption without what is surely not part of it: addresses, markup, openings, superfluous space; with the trigger
    word in front where it is given and missing. What it is left with says the same; fixing it again changes nothing."""
    before = None
    while before != text:  # a heading may hide an opening, and an entity may hide markup
        before = text
        text = _ENTITIES.sub(lambda entity: html.unescape(entity[0]), text)
        for form, kept in _MARKUP:
            text = form.sub(kept, text)
        text = _URLS.sub(" ", text)
        text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f\ufeff\u200b]", "", text)
        text = re.sub(r"\s+([.,;!?])", r"\1", " ".join(text.split()))
        rest = _OPENINGS.sub("", text)
        if rest != text and rest:
            text = rest[0].upper() + rest[1:] if text[0].isupper() else rest
        elif rest != text:
            text = rest
    if trigger and text and not _has_word(text, trigger):
        text = f"{trigger}, {text}"
    return text


def _has_word(text, word):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None

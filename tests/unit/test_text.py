"""The rules by which a prompt becomes 300 tokens."""

import inspect

import torch

from sanacog.sana_core.text import INSTRUCTION, MAX_TOKENS, kept_states, token_mask, tokens_of


def words(text):
    """A tokenizer whose ids tell what they stand for: BOS 2, then one id a word."""
    return [2] + [3 + sum(map(ord, word)) for word in text.split(" ") if word]


def test_instruction_is_nvlabs_wording():
    # diffusers ships the same sentences, with single quotes where NVlabs has double ones.
    from diffusers import SanaPipeline

    theirs = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert "\n".join(theirs).replace("'", '"') == INSTRUCTION
    assert '"Enhanced prompt"' in INSTRUCTION and INSTRUCTION.endswith("User Prompt: ")


def test_lengths_with_and_without_instruction():
    count = len(words(INSTRUCTION))
    assert len(tokens_of(words, "a cat", False)) == MAX_TOKENS
    assert len(tokens_of(words, "a cat", True)) == count + MAX_TOKENS - 2
    assert tokens_of(words, "  a cat\n", False)[:4] == words("a cat") + [0]


def test_an_empty_prompt_has_the_instruction_too():
    """As in NVlabs' code: BOS and the instruction's last token are kept of it."""
    asked = words(INSTRUCTION)
    ids = tokens_of(words, " \n", True)
    assert ids == asked + [0] * (MAX_TOKENS - 2)
    states = torch.arange(len(asked), dtype=torch.float32)[None, :, None]
    kept, mask = kept_states(states, len(ids))
    assert mask.sum() == 2 and kept[0, :2, 0].tolist() == [0, len(asked) - 1]
    assert tokens_of(words, " \n", False) == [2] + [0] * (MAX_TOKENS - 1)


def test_long_prompt_is_cut_at_the_end():
    prompt = " ".join(f"w{i}" for i in range(10_000))
    assert tokens_of(words, prompt, False) == words(prompt)[:MAX_TOKENS]
    ids = tokens_of(words, prompt, True)
    assert ids == words(INSTRUCTION + prompt)[:len(ids)] and 0 not in ids


def test_kept_are_bos_and_the_last_299():
    length, count = 420, 130
    states = torch.arange(1, count + 1).float()[None, :, None].expand(1, count, 3)
    kept, mask = kept_states(states, length)
    assert kept.shape == (1, MAX_TOKENS, 3) and mask.shape == (1, MAX_TOKENS)
    # Position 121 of 420 is the first of the last 299; it holds 122.
    assert kept[0, :, 0].tolist() == [1.0] + [float(i) for i in range(122, 131)] + [0.0] * 290
    assert mask[0].tolist() == [1] * 10 + [0] * 290


def test_kept_without_instruction_is_everything():
    states = torch.randn(1, 7, 3)
    kept, mask = kept_states(states, MAX_TOKENS)
    assert torch.equal(kept[:, :7], states) and not kept[:, 7:].any() and mask.sum() == 7


def test_mask_of_changed_states():
    states, mask = torch.zeros(2, 6, 3), torch.zeros(1, 6, dtype=torch.long)
    states[:, :2], mask[:, :2] = 1.0, 1
    states[1, 2] = 1.0  # a word more, put in by a node
    assert token_mask(states, mask).tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert torch.equal(token_mask(states, None), token_mask(states, mask))
    # No zeros: another encoder's padding, of which only the mask tells; what is joined on behind it is text.
    assert token_mask(torch.ones(2, 6, 3), mask).tolist() == [[1, 1, 0, 0, 0, 0]] * 2
    assert token_mask(torch.ones(2, 8, 3), mask).tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]] * 2


def test_video_prompts():
    """The other instruction is that of diffusers' pipelines; a score stands behind the prompt, as their pages have it."""
    import inspect

    from diffusers import SanaImageToVideoPipeline, SanaVideoPipeline

    from sanacog.sana_core.text import INSTRUCTIONS, VIDEO, with_motion_score

    for pipeline in (SanaVideoPipeline, SanaImageToVideoPipeline):
        assert INSTRUCTIONS[VIDEO] == "\n".join(inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default)
    count = len(words(INSTRUCTIONS[VIDEO]))
    assert len(tokens_of(words, "a cat", VIDEO)) == count + MAX_TOKENS - 2 != len(tokens_of(words, "a cat", True))
    assert with_motion_score(" a cat runs.\n", 30) == "a cat runs. motion score: 30."
    assert with_motion_score("a cat", 0) == "a cat"

"""A tiny CLIP of random weights, saved as transformers saves one, with a tokenizer that knows letters."""

import json

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

MEAN, DEVIATION, SIDE = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], 32


def make(folder):
    """Writes the folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(ord("a") + i) for i in range(26)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=24)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(
        text_config={**small, "vocab_size": len(vocabulary), "max_position_embeddings": 24, "bos_token_id": 0,
                     "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**small, "image_size": SIDE, "patch_size": 8}, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN,
                       image_std=DEVIATION).save_pretrained(folder)
    return folder

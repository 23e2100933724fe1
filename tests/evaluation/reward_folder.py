"""A tiny ImageReward of random weights by its authors' names, with a tokenizer that knows three words."""

import torch

SIDE, PATCH, WIDE, TEXT, LAYERS, WORDS = 64, 16, 128, 192, 2, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "a", "sky"]


def tensors():
    """A file's tensors by its authors' names, small and random."""
    generator = torch.Generator().manual_seed(3)
    made = {"blip.visual_encoder.cls_token": torch.randn(1, 1, WIDE, generator=generator),
            "blip.visual_encoder.pos_embed": torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDE, generator=generator),
            "blip.visual_encoder.patch_embed.proj.weight": 0.05 * torch.randn(WIDE, 3, PATCH, PATCH, generator=generator),
            "blip.visual_encoder.patch_embed.proj.bias": torch.zeros(WIDE),
            "blip.vision_proj.weight": torch.zeros(2, 2), "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}

    def linear(name, ins, outs):
        made[f"{name}.weight"] = 1.5 * torch.randn(outs, ins, generator=generator) / ins**0.5
        made[f"{name}.bias"] = 0.2 * torch.randn(outs, generator=generator)

    def norm(name, width):
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        made[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    for i in range(LAYERS):
        block, layer = f"blip.visual_encoder.blocks.{i}", f"blip.text_encoder.encoder.layer.{i}"
        norm(f"{block}.norm1", WIDE), norm(f"{block}.norm2", WIDE)
        linear(f"{block}.attn.qkv", WIDE, 3 * WIDE), linear(f"{block}.attn.proj", WIDE, WIDE)
        linear(f"{block}.mlp.fc1", WIDE, 256), linear(f"{block}.mlp.fc2", 256, WIDE)
        for kind, seen in (("attention", TEXT), ("crossattention", WIDE)):
            linear(f"{layer}.{kind}.self.query", TEXT, TEXT)
            linear(f"{layer}.{kind}.self.key", seen, TEXT), linear(f"{layer}.{kind}.self.value", seen, TEXT)
            linear(f"{layer}.{kind}.output.dense", TEXT, TEXT), norm(f"{layer}.{kind}.output.LayerNorm", TEXT)
        linear(f"{layer}.intermediate.dense", TEXT, 320), linear(f"{layer}.output.dense", 320, TEXT)
        norm(f"{layer}.output.LayerNorm", TEXT)
    norm("blip.visual_encoder.norm", WIDE), norm("blip.text_encoder.embeddings.LayerNorm", TEXT)
    for kind, count in (("word", len(WORDS) + 2), ("position", 40)):
        made[f"blip.text_encoder.embeddings.{kind}_embeddings.weight"] = torch.randn(count, TEXT, generator=generator)
    for at, (ins, outs) in zip((0, 2, 4, 6, 7), ((TEXT, 64), (64, 32), (32, 16), (16, 8), (8, 1))):
        linear(f"mlp.layers.{at}", ins, outs)
    return made


def make(folder):
    """Writes the folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder

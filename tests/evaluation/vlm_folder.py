"""A tiny vision-language model, a Qwen2.5-VL of 115,000 random weights, with a tokenizer of bytes."""

import numpy
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def make(folder):
    """Writes the folder; returns it."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
               "<|video_pad|>"]
    bytes_ = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=bytes_, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0],
                                                     additional_special_tokens=special[1:])
    end, _, stop, vision_start, vision_end, image, video = tokenizer.convert_tokens_to_ids(special)
    torch.manual_seed(0)
    network = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                     "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": end, "eos_token_id": stop,
                     "bos_token_id": None,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
                       "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]},
        image_token_id=image, video_token_id=video, vision_start_token_id=vision_start, vision_end_token_id=vision_end))
    template = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
                "{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=112 * 112), tokenizer,
        transformers.Qwen2VLVideoProcessor(min_pixels=28 * 28, max_pixels=56 * 56 * 4), chat_template=template)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def yes(folder, frames, question):
    """P(Y or y) beside P(N or n) as the answer's first letter, by transformers' own scores. frames: one, or a clip of them,
    (H, W, 3) in [0, 1]."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    network = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    shown = [(frame.numpy() * 255).round().astype("uint8") for frame in frames]
    kind, media = ("image", {"images": shown}) if len(shown) == 1 else ("video", {"videos": [numpy.stack(shown)]})
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": kind}, {"type": "text", "text": question}]}],
                                         add_generation_prompt=True)
    inputs = processor(text=[text], return_tensors="pt", **media, **({"do_sample_frames": False} if kind == "video" else {}))
    said = network.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    each = said.logits[0][0].double().softmax(-1)
    y, n = (sum(each[processor.tokenizer.convert_tokens_to_ids(letter)] for letter in letters) for letters in ("Yy", "Nn"))
    return float(y / (y + n))

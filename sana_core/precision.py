"""What of a Sana transformer stays in 16 bits when it is quantised, and why.

Norms, the depthwise convolution and the modulation tables are no Linear layers and stay anyway, and linear attention
itself adds up in fp32.
"""

# Pattern of a layer's canonical name -> the reason.
KEPT = (
    (r"^patch_embed\.", "the latent enters here: an error reaches every layer, and it holds hardly any weights"),
    (r"^time_embed\.", "shifts and scales every token in the same way, and runs on one row a picture: no time to gain"),
    (r"^caption_projection\.", "the text encoder's states are far larger than anything behind the norm that follows, and it "
                               "runs on text alone: no time to gain"),
    (r"\.attn2\.to_[kv]$", "reads the same text; kept in NVIDIA's 8-bit and Nunchaku's 4-bit models too"),
    (r"^proj_out$", "the velocity leaves here: nothing after it evens an error out"),
)

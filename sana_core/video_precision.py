"""What of a SANA-Video transformer stays in 16 bits when it is quantised, and why; as precision.py, of both generations."""

KEPT = (
    (r"^patch_embedding$", "the latent enters here: an error reaches every layer, and it holds hardly any weights"),
    (r"^time_embed\.", "shifts and scales every token in the same way, and runs on one row a clip: no time to gain"),
    (r"^caption_projection\.", "the text encoder's states are far larger than anything behind the norm that follows, and it "
                               "runs on text alone: no time to gain"),
    (r"\.attn2\.to_[kv]$", "reads the same text"),
    (r"\.beta_proj$", "weighs every key of a head at once, and is a thousandth of the work"),
    (r"^attn_res\.", "decides which depth a token sees, and is one row"),
    (r"^proj_out$", "the velocity leaves here: nothing after it evens an error out"),
)

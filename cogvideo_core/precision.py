"""What of a CogVideoX transformer stays in 16 bits when it is quantised, and why.

Norms and the position table are no Linear layers and stay anyway. What is quantised, attention's four projections and
the feed-forward network, are the layers that torchao's recipe for CogVideoX takes too.
"""

# Pattern of a layer's canonical name -> the reason.
KEPT = (
    (r"^patch_embed\.", "latent and text enter here: an error reaches every layer"),
    (r"^(time|ofs)_embedding\.", "drives every modulation, and runs on one row a video: no time to gain"),
    (r"\.norm[12]\.linear$", "shifts and scales every token in the same way, on one row a video; CogVideoX 1.5 gives black "
                             "videos with norm1 quantised"),
    (r"^norm_out\.", "shifts and scales all of the output in the same way"),
    (r"^proj_out$", "the prediction leaves here: nothing after it evens an error out"),
)

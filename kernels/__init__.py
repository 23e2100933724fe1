"""Operations of the models, one file each: plain PyTorch on tensors, no modules and no host."""

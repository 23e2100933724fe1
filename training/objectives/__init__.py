"""What a network is trained for: a file each, of a frozen dataclass with losses(network, batch, generator) and
losses_at(network, batch, level, generator), both (B,) in fp32. All chance comes from the generator, which is the CPU's."""

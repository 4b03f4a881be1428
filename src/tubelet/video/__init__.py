"""A file becomes a clip: decode, sample, augment, normalize, write; and the synthetic motion set."""

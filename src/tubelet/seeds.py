"""Seeds that follow from what they are for, so that nothing depends on how often a generator was asked before."""

import hashlib

import torch


def derive(*parts: object) -> int:
    """A seed from 0 to 2**63-1 that depends on all of `parts` (numbers and strings) and on nothing else, anywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A CPU Generator seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))

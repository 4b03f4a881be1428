"""Model folders: what is saved, and how it comes back with every key accounted for."""

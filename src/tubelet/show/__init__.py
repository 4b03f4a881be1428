"""Pictures of clips, models and results, as PNG bytes: one file per kind of picture."""

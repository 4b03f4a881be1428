"""ONE FUNCTION = ONE RUN: whole configurations with the command, the cost and what to expect in the docstring.

`choose` of a recipe file picks the function for a number of videos and a device; every setting it fixes can be changed
with a dotted flag (`--optim.epochs 200`).
"""

from tubelet.recipes._assemble import aligning, comparison, fine_tuning, pretraining

__all__ = ["aligning", "comparison", "fine_tuning", "pretraining"]

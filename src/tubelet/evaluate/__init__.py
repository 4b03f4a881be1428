"""How good a model is: metrics, multi-view, k-NN, linear probe, baselines, and the report that shows them."""

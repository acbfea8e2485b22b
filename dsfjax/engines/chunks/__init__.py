"""Algorithms for chunks of steps, one per file, and the loop over segments that runs them.

`products` and `wy` turn a chunk into matrix products, `elementwise` runs the steps of many chunks
side by side, `stepwise` takes any structure. `dsfjax.engines.dispatch` chooses.
"""

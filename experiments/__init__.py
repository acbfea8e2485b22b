"""The experiments of the paper, a file each: ``python -m experiments.fig2_normalization``.

References:
    Sieber et al. (2024), arXiv:2405.15731.
"""

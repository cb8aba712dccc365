"""Sweeps over time-sorted payments: add what happened, evict what left a window, take out what was reversed.

`timeline` and `sweeps` are what feature modules call; the compiled kernels behind them are imported when first used.
"""

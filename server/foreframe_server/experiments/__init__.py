"""Experiments on held-out clips: each a module that measures, sums up and says how its chart looks."""

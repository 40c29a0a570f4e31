"""Experiments that train small models to answer one question each; what serves is not changed by them."""

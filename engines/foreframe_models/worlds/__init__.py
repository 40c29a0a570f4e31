"""Simulated worlds that the embedded models are trained on. They need `mujoco`, never torch."""

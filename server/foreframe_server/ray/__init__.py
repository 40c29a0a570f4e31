"""Many machines: models on Ray Serve's replicas, and the app that asks them. Nothing else here imports ray.

Every call between processes takes and returns bytes in frames of our own, so that nothing of ours is ever unpickled.
"""

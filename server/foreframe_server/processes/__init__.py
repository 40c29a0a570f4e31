"""Engines in processes of their own: calls over a private socket, tensors through shared memory, restarts.

It knows engines and how they are opened, and nothing of jobs, queues or wires.
"""

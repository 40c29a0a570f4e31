"""How many devices a fleet of robots needs, told by the worker's own code on a simulated clock."""

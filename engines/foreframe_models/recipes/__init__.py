"""Training recipes of published models, run as their authors ran them."""

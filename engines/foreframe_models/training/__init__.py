"""Training: data in memory, one loop for every model, and the recipes of the models that this project trains."""

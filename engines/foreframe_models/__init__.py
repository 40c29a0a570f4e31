"""The torch side of foreframe: architectures, worlds, training, export and build. Serving never imports it."""

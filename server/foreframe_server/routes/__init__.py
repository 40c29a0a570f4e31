"""The HTTP door's routes. They know headers and codes; pixels are the codec's, work is the service's."""

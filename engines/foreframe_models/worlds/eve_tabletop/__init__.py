"""A wheeled humanoid in the manner of 1X EVE that reaches for and pushes objects in a rimmed tray.

Three things in it are uncertain on purpose, and none is in the state vector: the mass and the friction of
every object, and when and where the ball is kicked.
"""

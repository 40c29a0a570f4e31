"""What can be wrong with messages and parameters, each said in words for the robot's log."""


class ConversionError(ValueError):
    """A message or a parameter cannot become what the server takes."""


class ContextIncomplete(ConversionError):
    """Too little has been seen yet, or with too large gaps; later messages may do."""

"""Why a run says nothing."""


class Invalid(Exception):
    """A run whose numbers must not be printed; the message is one line for a person."""

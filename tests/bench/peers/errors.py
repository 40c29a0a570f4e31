"""Why a run says nothing.

Invalid
└── NotMeasured
"""


class Invalid(Exception):
    """A run whose numbers must not be printed; the message is one line for a person."""


class NotMeasured(Invalid):
    """A server that cannot be installed or started here; it has no numbers, and those of others stand."""

"""The one error that users meet."""


class SttmError(ValueError):
    """A mistake that the caller can mend: what was wrong, what is allowed, what to do."""

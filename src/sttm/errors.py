"""The one error that users meet."""


class SttmError(ValueError):
    """A mistake that the caller can fix: what was wrong, what is allowed, what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message without its full stop, or the class name where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else "") or type(error).__name__

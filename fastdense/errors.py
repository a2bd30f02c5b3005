"""The one kind of error a user can mend."""


class UserError(ValueError):
    """A mistake in a flag, a row, a file or a model directory.

    The message is one sentence that says what is wrong, where (file and line, or flag), what was expected and
    what to do about it. Commands print it without a traceback and end with exit status 2; in library use it is a
    ``ValueError``.
    """

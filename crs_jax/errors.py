"""The one exception for anything the user can put right."""


class InputError(ValueError):
    """A file, flag or config value that cannot be used.

    The message is one line that names the file, line, field or flag, says what was found and what to do. `main` prints
    it without a traceback and exits with status 2.
    """

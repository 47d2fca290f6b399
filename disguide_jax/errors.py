"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake in the configuration, a file or the machine, not in the program.

    Its message says what was wrong, where, and what would be right. Programs print it
    without a traceback and exit with status 2.
    """

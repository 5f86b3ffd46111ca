"""How a command fails: one clear line and an exit code."""

from typing import Final

import click

FAILURE: Final = 1
"""Exit code: what was asked could not be done."""

USAGE: Final = 2
"""Exit code: the command line or the configuration is wrong."""

UNAVAILABLE: Final = 69
"""Exit code (EX_UNAVAILABLE): something that is needed is not there or busy; trying later may help."""

INTERNAL: Final = 70
"""Exit code (EX_SOFTWARE): a bug of ours."""

INTERRUPTED: Final = 130
"""Exit code: ended by SIGINT (Ctrl-C)."""


class CliError(click.ClickException):
    """What the user has to know, in one line: what was wrong, what is allowed, what to do."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class, and reads it off the instance


def sole_cause(error: BaseException) -> BaseException:
    """What is in a group of one, at any depth: nurseries wrap even a single error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

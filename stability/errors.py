"""What a user did wrong, said so that they can mend it."""

LONGEST_SHOWN = 500
"""Characters of a value that a message shows: whatever a file holds, a person reads it."""

EXIT_BAD_INPUT = 2
"""The exit code of a command that says something that cannot be."""

EXIT_FAILED = 1
"""The exit code of a command of which a run failed, or that could not go on."""

EXIT_INTERRUPTED = 130
"""The exit code of a command that was asked to stop, as shells have it for Ctrl-C."""


class InputError(ValueError):
    """Bad input: one paragraph that names the key, the value and the fix.

    Entry points print it without a traceback and exit with code 2. Raise it before anything is compiled or written.

    Args:
        key: the configuration key, command-line argument, column or file at fault.
        value: what was found there.
        problem: why it cannot be used, as a clause ("is below the minimum learning rate 1e-05").
        fix: what to do instead, as a sentence.
    """

    def __init__(self, key: str, value: object, problem: str, fix: str) -> None:
        self.key, self.value, self.problem, self.fix = key, value, problem, fix
        text = str(value)
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        super().__init__(f"{key}={shown}: {problem}. {fix}")

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, object, str, str]]:
        # An exception is sent between processes as its message alone, which is not what `__init__` takes.
        return type(self), (self.key, self.value, self.problem, self.fix)

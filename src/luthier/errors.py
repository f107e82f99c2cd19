"""The errors a user can cause or meet, with exit codes. All else is a bug of ours (exit 1)."""


class LuthierError(Exception):
    """A problem that its message explains: what is wrong, where (file:line), what to do."""

    exit_code = 2


class ConfigError(LuthierError):
    """The run config is wrong; the message lists every error found, one a line."""


class DataError(LuthierError):
    """Input data cannot be used: unreadable, empty, or with too many bad rows."""


class ModelError(LuthierError):
    """A base model, tokenizer or adapter cannot be used."""


class StoreError(LuthierError):
    """The store cannot be read or written, or an artifact is missing, ambiguous or damaged."""


class ServingError(LuthierError):
    """A model cannot be converted or served: converter or server missing, refused or failed."""


class GateError(LuthierError):
    """A measured check failed; the artifact it measured is kept but nothing is built on it."""

    exit_code = 3


class InterruptedRunError(LuthierError):
    """Stopped on request (SIGINT, SIGTERM); the same command continues where it stopped."""

    exit_code = 4


class PrunedRunError(LuthierError):
    """Ended by who watched it, as not worth going on: caught there, and never shown to a user."""

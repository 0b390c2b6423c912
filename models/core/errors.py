"""Errors that users are told in one line: the value, the rule and the remedy. Any other error is a bug."""


class NinefoldError(Exception):
    """Root of the errors that are somebody's to put right: the user's, a provider's, a machine's."""


class ConfigError(NinefoldError, ValueError):
    """A parameter, file or argument is not what it must be. It is a ValueError too, as pydantic's validators want."""


class UnusableOutput(NinefoldError):
    """A stage has made too little that can be used: it is not kept, and nothing that follows is paid for."""


class MissingFileError(NinefoldError, FileNotFoundError):
    """A file, a folder or a package that was named is not there."""


class ProcessError(NinefoldError, RuntimeError):
    """A program that was started for the user has failed; its output says why."""

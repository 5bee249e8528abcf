"""Every error the package raises on purpose, and the exit code each ends the command line with.

    PersonaPlexError                  1
    ├── UsageError                    2   options that contradict each other
    ├── AudioError                    3   a recording that cannot be read or used
    ├── CheckpointError               4   a model folder, file or tensor that is missing, damaged or unknown
    │   └── ConfigError               4   a config.json that says something we cannot run
    ├── PersonaError                  5   an unknown or unusable voice, prompt or role text
    ├── OutputError                   6   a result that could not be written
    ├── BackendError                  7   MLX has no usable backend on this machine
    ├── TrainingError                 8   a training run that cannot begin, go on or be resumed
    ├── SynthesisError                9   a speech synthesiser that is missing or cannot say a text
    ├── ConversationError            10   a live conversation that cannot be opened or used
    │   ├── Busy                     10   every slot is taken
    │   ├── Closed                   10   it has ended
    │   ├── Unavailable              10   the server still loads its model, or is about to stop
    │   └── Unsupported              10   its backend cannot do this
    ├── VerificationError            13   a model whose answers fail `verify`, or a check that would pass anything
    ├── EngineError                  12   a recogniser, language model or voice that is missing, unreachable or fails
    └── DeviceError                  11   a microphone or speaker that is missing, busy, refused or unplugged

A message says what happened, what was expected and what to do, in one line. Ctrl-C ends with 130.
"""

from __future__ import annotations


class PersonaPlexError(Exception):
    """Root of the tree: catch this to catch everything the package raises on purpose."""

    exit_code = 1


class UsageError(PersonaPlexError):
    """Arguments that contradict each other or are out of range."""

    exit_code = 2


class AudioError(PersonaPlexError):
    """A recording that is missing, empty, damaged, too long or not audio."""

    exit_code = 3


class CheckpointError(PersonaPlexError):
    """A model folder, file or tensor that is missing, damaged or not the one expected."""

    exit_code = 4


class ConfigError(CheckpointError):
    """A configuration with an unknown, missing or unsupported field."""


class PersonaError(PersonaPlexError):
    """A voice, prompt or role text that does not exist or cannot be used."""

    exit_code = 5


class OutputError(PersonaPlexError):
    """A file that could not be written; whatever stood there before is untouched."""

    exit_code = 6


class BackendError(PersonaPlexError):
    """MLX is installed without a backend that works here."""

    exit_code = 7


class TrainingError(PersonaPlexError):
    """A training run that cannot begin, go on or be resumed; its last checkpoint is untouched."""

    exit_code = 8


class SynthesisError(PersonaPlexError):
    """A speech synthesiser that is not installed, or a text or voice it cannot say."""

    exit_code = 9


class ConversationError(PersonaPlexError):
    """A live conversation that cannot be opened, or not be used in this way."""

    exit_code = 10


class Busy(ConversationError):  # noqa: N818 - a state of affairs more than a mistake
    """Every slot is taken: `in_use` of `slots`."""

    def __init__(self, in_use: int, slots: int) -> None:
        super().__init__(f"all slots are taken: {in_use} of {slots} in use; try again when a conversation has ended")
        self.in_use = in_use
        self.slots = slots


class Closed(ConversationError):  # noqa: N818
    """The conversation, or its backend, has ended."""


class Unavailable(ConversationError):  # noqa: N818
    """A server that cannot take a call now: it still loads its model, has none of this kind, or is about to stop."""


class Unsupported(ConversationError):  # noqa: N818
    """Something that this backend's `capabilities` do not include."""


class DeviceError(PersonaPlexError):
    """A microphone or speaker that is missing, busy, refused or unplugged, or no library to reach one."""

    exit_code = 11


class EngineError(PersonaPlexError):
    """An engine of the cascade that is not installed, cannot be reached, does not have its model, or failed."""

    exit_code = 12


class VerificationError(PersonaPlexError):
    """A model whose answers do not pass `verify`'s checks, or a check that also passes what it must not."""

    exit_code = 13


EXIT_INTERRUPTED = 130

"""Everything that can go wrong in the core, with the gRPC status that a server gives it.

    MetaNASError
    ├── InvalidTaskError        INVALID_ARGUMENT      a support set that cannot be learned
    ├── InvalidImageError       INVALID_ARGUMENT      pixels that cannot be used
    ├── InvalidConfigError      INVALID_ARGUMENT      a search space or schedule that makes no sense
    ├── AdaptationCancelledError  CANCELLED           the caller asked to stop
    ├── DivergedError           FAILED_PRECONDITION   steps that led to infinity or to what is no number
    ├── ArtifactError           DATA_LOSS             a file that cannot be trusted
    │   ├── WrongKindError      FAILED_PRECONDITION   a file of another kind
    │   ├── CorruptArtifactError  DATA_LOSS           truncated, altered or not ours
    │   └── NewerVersionError   FAILED_PRECONDITION   written by a later version
    └── NothingMovedError       INTERNAL              a meta-step that changed no parameter

A message says what was wrong with the numbers seen, then what to do.
"""


class MetaNASError(Exception):
    """Root of all errors of this project's core."""


class InvalidTaskError(MetaNASError, ValueError):
    """The support set cannot be learned: too few classes or images, or shapes that do not fit."""


class InvalidImageError(MetaNASError, ValueError):
    """An image cannot be used: wrong shape, type or range."""


class InvalidConfigError(MetaNASError, ValueError):
    """A search space, schedule or preprocessing is not usable."""


class AdaptationCancelledError(MetaNASError):
    """Adaptation was stopped by its caller before it finished."""


class DivergedError(MetaNASError):
    """The steps of an adaptation led to infinity or to what is no number."""


class ArtifactError(MetaNASError):
    """A file of ours cannot be read."""


class WrongKindError(ArtifactError):
    """The file is one of ours but of another kind, or no file of ours at all."""


class CorruptArtifactError(ArtifactError):
    """The file is truncated or does not match its checksum."""


class NewerVersionError(ArtifactError):
    """The file was written by a later version of this package."""


class NothingMovedError(MetaNASError):
    """A meta-step left every parameter where it was."""

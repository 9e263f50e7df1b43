"""The errors that certood raises for its users; each carries the exit code of the command line."""


class LeftOutWarning(UserWarning):
    """What of a run a report does not show, and why."""


class CertoodError(Exception):
    """Base of every error whose message is meant for the user: what was expected, what was found, what to do."""

    exit_code = 2


class RequirementNotMet(CertoodError):
    """A condition of `--require` does not hold."""

    exit_code = 1


class RecipeError(CertoodError):
    """A recipe or one of its settings is not valid."""


class DataError(CertoodError):
    """An image set is missing, corrupt, or does not fit the others."""


class ArchitectureError(CertoodError):
    """A network is unknown, cannot be built, or does not fit the images."""


class CheckpointError(CertoodError):
    """A checkpoint is missing, truncated, foreign, or does not fit its network."""


class RunDirectoryError(CertoodError):
    """A run directory exists already, is incomplete, or cannot be written."""


class DeviceError(CertoodError):
    """A device was asked for that this machine does not have."""


class TrainingDiverged(CertoodError):
    """The loss became infinite or not a number."""

    exit_code = 1


class ScoreCollapsed(CertoodError):
    """Certified training made the score nearly constant."""

    exit_code = 1


class CannotCertify(CertoodError):
    """The model or the question asked of it cannot be certified."""

    exit_code = 3


class MissingThreshold(CannotCertify):
    """A detector has no threshold γ, so that there is no decision to certify."""

    def __init__(self) -> None:
        super().__init__("this detector has no threshold γ; store one with `certood evaluate RUN --calibrate`")


class UnsupportedOperation(CannotCertify):
    """The network contains an operation for which no sound bound is known here."""

"""What can go wrong in a run?

OptimizerError
├── JobError          a job file, option or candidate that does not fit           exit code 2
├── RunError          a run that is missing, foreign, changed, or incomparable    exit code 2
├── ExportError       an export that may not or cannot be written                 exit code 2
├── ScoreMismatch     an exported checkpoint that does not score what it should   exit code 1
├── TooManyFailures   most of the last candidates failed                          exit code 1
├── WorkerError       the workers cannot start                                    exit code 1
├── ClusterError      a cluster that cannot be reached, or does not do it     exit code 69
├── RunLocked         another process is driving this run                         exit code 73
├── DiskFull          no room left for the ledger or an export                    exit code 74
└── LedgerBusy        the ledger stayed locked                                    exit code 75
"""


class OptimizerError(ValueError):
    """Anything that a run refuses. The message says what was expected, what arrived, and what to do."""

    exit_code = 2


class JobError(OptimizerError):
    """A job file, option or candidate that does not fit."""


class RunError(OptimizerError):
    """A run's folder that is missing, foreign, whose inputs have changed, or that cannot tell what is asked."""


class ExportError(OptimizerError):
    """An export that may not or cannot be written."""


class ScoreMismatch(OptimizerError):
    """An exported checkpoint that does not score what the ledger says."""

    exit_code = 1


class TooManyFailures(OptimizerError):
    """Most of the last candidates failed."""

    exit_code = 1


class WorkerError(OptimizerError):
    """The workers cannot start."""

    exit_code = 1


class ClusterError(OptimizerError):
    """A cluster that cannot be reached, may not be trusted with a job, or does not do what is asked."""

    exit_code = 69


class RunLocked(OptimizerError):
    """Another process is driving this run."""

    exit_code = 73


class DiskFull(OptimizerError):
    """No room left for the ledger or an export."""

    exit_code = 74


class LedgerBusy(OptimizerError):
    """The ledger stayed locked by somebody else."""

    exit_code = 75

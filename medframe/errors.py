"""The errors a user can cause; each message says where, what, and what would be right."""

from __future__ import annotations


class MedframeError(Exception):
    """Base of all. Each argument is one problem; the command line prints each on a line of its own, no traceback."""

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.args)


class RecipeError(MedframeError):
    """A recipe that cannot be composed or built."""


class PluginError(MedframeError):
    """A plugin or component that breaks its contract."""


class DataError(MedframeError):
    """A file or row that cannot be read, or data that leaves nothing to train on."""


class PromptError(MedframeError):
    """Turns that a prompt format cannot lay out, or a control token that does not resolve."""


class TooLong(PromptError):
    """A question that alone is longer than what there is room for."""


class BackboneError(MedframeError):
    """Weights or a tokenizer that are missing, broken or not what was asked for."""


class RunError(MedframeError):
    """A run directory that is missing, taken, unfinished or bound to something else."""


class SaveError(MedframeError):
    """Something that could not be written, as on a full disk; what was there before is still there."""

    exit_code = 1


class ProofError(MedframeError):
    """Something that was trained or saved and then failed its proof: a failure, not wrong input."""

    exit_code = 1


class Terminated(BaseException):
    """SIGTERM asked this process to end, as a cluster does before it takes a machine away; KeyboardInterrupt's like."""

"""Errors that a user can act on. The command line prints their message alone; anything else is a bug, with traceback."""


class UserError(Exception):
    """Something the user gave is wrong. The message names it, and says what to do."""


class ConfigError(UserError):
    """The configuration is wrong; the message has a line for each fault."""


class ModelError(UserError):
    """A model or tokenizer cannot be used."""


class RewardError(UserError):
    """A reward cannot be loaded, raised, hung, or returned what is no score."""


class EpisodeError(UserError):
    """An environment cannot be loaded or broke its contract."""


class PromptError(UserError):
    """Prompts are missing, unreadable, empty or too long."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or was written by another kind of run."""


class RunFolderError(UserError):
    """The run's folder cannot be used: its name is taken, or not every node sees it."""


class StorageError(UserError):
    """The disk takes no more: it is full, or broken. The command line ends with exit code 1, not 2."""


class RolloutError(UserError):
    """Rollouts failed for good: workers keep dying or do not answer."""


class LearnerError(UserError):
    """The learner failed for good, or its numbers are wrong: log-probabilities disagree, a loss is not finite."""


class NotFiniteError(LearnerError):
    """A loss, gradient, weight, metric or log-probability is NaN or infinite: such a run always stops."""


class DivergenceError(UserError):
    """The detector ended the run by one of its rules."""


class RunPaused(DivergenceError):
    """The detector saved the run and ended it for someone to look at; `--resume` goes on."""


class PreferenceError(UserError):
    """Ratings, label files or a project of preferences cannot be used."""


class InstallationError(UserError):
    """Something this machine lacks."""

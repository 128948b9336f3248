"""The configuration: its schema, its TOML files, its limits, and the errors that users see."""

from r1zero.config.errors import ERROR_WAIT_S, CollectiveError, RewardError, UserError, shared_error
from r1zero.config.evaluation import Evaluation, EvaluationSet
from r1zero.config.files import check_utf8, read_json, read_text, readable, reason
from r1zero.config.grpo import Grpo
from r1zero.config.schema import (
    Alarms,
    Checkpoint,
    Config,
    Data,
    Layout,
    MegatronGrid,
    Metrics,
    Model,
    Optimizer,
    Parity,
    Plan,
    Reward,
    Rollout,
    Run,
    Sync,
    Train,
    VllmGrid,
)
from r1zero.config.suggestions import suggest
from r1zero.config.toml import LocalPath, OwnFunction, dump, load, plain, read_toml

__all__ = [
    "ERROR_WAIT_S",
    "Alarms",
    "Checkpoint",
    "CollectiveError",
    "Config",
    "Data",
    "Evaluation",
    "EvaluationSet",
    "Grpo",
    "Layout",
    "LocalPath",
    "MegatronGrid",
    "Metrics",
    "Model",
    "Optimizer",
    "OwnFunction",
    "Parity",
    "Plan",
    "Reward",
    "RewardError",
    "Rollout",
    "Run",
    "Sync",
    "Train",
    "UserError",
    "VllmGrid",
    "check_utf8",
    "dump",
    "load",
    "plain",
    "read_json",
    "read_text",
    "read_toml",
    "readable",
    "reason",
    "shared_error",
    "suggest",
]

"""The configuration: its schema, its TOML files, its limits, and the errors that users see."""

from r1zero.config.errors import SPEAKER_S, CollectiveError, RewardError, UserError, found_alike
from r1zero.config.files import check_utf8, read_json, read_text, readable, reason
from r1zero.config.schema import Alarms, Checkpoint, Config, Data, Grpo, Layout, MegatronGrid, Metrics, Model, Optimizer, Parity, Plan, Reward, Rollout, Run, Sync, Train, VllmGrid
from r1zero.config.toml import LocalPath, OwnFunction, dump, load, plain, read_toml

__all__ = ['Alarms', 'Checkpoint', 'CollectiveError', 'Config', 'Data', 'Grpo', 'Layout', 'LocalPath', 'MegatronGrid', 'Metrics', 'Model', 'Optimizer', 'OwnFunction', 'Parity', 'Plan', 'Reward', 'RewardError', 'Rollout', 'Run', 'SPEAKER_S', 'Sync', 'Train', 'UserError', 'VllmGrid', 'check_utf8', 'dump', 'found_alike', 'load', 'plain', 'read_json', 'read_text', 'read_toml', 'readable', 'reason']

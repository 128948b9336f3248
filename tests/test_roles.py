"""The order in which a rank's parts are built and leave the device, where no device is.

python -m pytest tests/test_roles.py
"""

import json

import pytest
import torch

from r1zero import config, roles
from r1zero.distributed.layout import carve


class Built(Exception):
    pass


def test_the_engine_leaves_the_device_before_the_trainer_is_built_there(monkeypatch, tmp_path):
    """Both at once may not fit a die."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            dict(
                architectures=["Qwen2ForCausalLM"],
                model_type="qwen2",
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                vocab_size=32,
                max_position_embeddings=64,
                rms_norm_eps=1e-6,
                rope_theta=1e4,
                tie_word_embeddings=True,
                hidden_act="silu",
            )
        )
    )
    seen = []

    class Engine:
        def __init__(self, *args, **kwargs):
            seen.append("engine")

        def sleep(self):
            seen.append("asleep")

    def build(*args, **kwargs):
        seen.append("trainer")
        raise Built

    monkeypatch.setattr(roles, "Engine", Engine)
    monkeypatch.setattr(roles.build, "initialize", lambda *args: None)
    monkeypatch.setattr(roles.build, "build_model", build)
    cfg = config.Config(model=config.Model(path=str(tmp_path)))
    with pytest.raises(Built):
        roles.Roles(cfg, carve(cfg.layout, 1), 0, torch.device("cpu"), stop_token_ids=[], forbidden_ids=[])
    assert seen == ["engine", "asleep", "trainer"]

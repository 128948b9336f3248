"""The weights that `train.py CONFIG --eval [FOLDER]` evaluates."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from r1zero.config import Config, UserError

HF_FILE, CHECKPOINT_FILE = "config.json", "manifest.json"


@dataclass(frozen=True)
class Target:
    """The weights to evaluate: those of `checkpoint`, or of the run's newest checkpoint, or otherwise of model.path."""

    checkpoint: Path | None = None
    newest: bool = False
    """Whether to evaluate the newest checkpoint of the run."""


def resolve(cfg: Config, folder: str) -> tuple[Config, Target]:
    """Returns the config to evaluate with, and the weights to evaluate.

    folder: a folder in Hugging Face's format, which then replaces model.path; or a checkpoint, `step_N` of a run; or
    empty for the newest checkpoint of the run. Raises UserError for anything else, and if no set is configured.
    """
    if not cfg.evaluation.sets:
        raise UserError(
            "--eval: the config names no set to evaluate; add a section [evaluation.sets.NAME] with the path of a "
            "folder that preprocess.py wrote, or evaluation.sets.NAME.path=FOLDER on the command line"
        )
    # Nothing is trained, so no reference model is needed.
    cfg = dataclasses.replace(cfg, grpo=dataclasses.replace(cfg.grpo, kl_coef=0.0))
    if not folder:
        return cfg, Target(newest=True)
    path = Path(folder)
    if (path / HF_FILE).is_file():
        return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, path=folder, checkpoint="")), Target()
    if (path / CHECKPOINT_FILE).is_file():
        return cfg, Target(path)
    raise UserError(
        f"--eval {folder}: is neither a folder in Hugging Face's format (it has no {HF_FILE}) nor a checkpoint of a "
        f"run (it has no {CHECKPOINT_FILE}); name one, for instance runs/NAME/checkpoints/step_20"
    )

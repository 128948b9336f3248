"""A checkpoint is written while the run goes on, and is that of the moment at which it was begun.

python -m pytest tests/test_run_checkpoints.py
"""

import threading
from unittest import mock

import pytest
import torch

from r1zero import config
from tests import fast, jobs


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


def save_during_the_reference_pass(rank, cfg):
    """Saves while the reference's weights are in the place of the policy's. Returns (newest iteration before the files
    were written, after `finish`, and whether the checkpoint has the policy's weights)."""
    from r1zero.checkpoint import saving, step_folders

    may_write = threading.Event()
    append = saving.append

    def held(file, data):
        assert may_write.wait(60)
        return append(file, data)

    def use(trainer):
        roles, folder = trainer.roles, trainer.checkpoints.folder
        parameters = list(roles.chunks[0].parameters())
        trainer.sync_and_check(0)
        trainer.step(1)
        expected = [roles.trained.weights_of(p).clone() for p in parameters]
        with mock.patch.object(saving, "append", held):
            trainer.checkpoints.begin(1)
            before = step_folders.newest(folder)
            with roles.reference_model():
                differs = not torch.equal(parameters[0].detach().view(-1), expected[0])
                may_write.set()
                trainer.checkpoints._pending.writing.result()
            trainer.checkpoints.finish()
        for p in parameters:
            p.data.zero_()
        after = trainer.checkpoints.resume()
        same = all(torch.equal(p.detach().view(-1), e) for p, e in zip(parameters, expected, strict=True))
        return before, after, differs and same

    return jobs.with_trainer(rank, cfg, use)


@pytest.mark.parametrize("offload", fast.only([True], [False, True]))
def test_the_files_are_written_while_other_weights_are_on_the_device(ranks, qwen2, tmp_path, offload):
    cfg = jobs.job_config(
        qwen2,
        config.Layout(),
        run=dict(dir=str(tmp_path)),
        train=dict(offload=offload),
        optimizer=dict(lr=3e-3, offload=offload),
    )
    assert ranks.run(save_during_the_reference_pass, cfg, size=2) == [(None, 1, True)] * 2

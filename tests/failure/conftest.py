"""What the tests of failures share: a base model and a short job on it."""

import pytest

from r1zero import config
from tests import jobs


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a random model, its data, and job.toml: a short job on it."""
    folder = jobs.make_base(tmp_path_factory.mktemp("base"), "qwen2")
    (folder / "job.toml").write_text(config.dump(jobs.job_config(folder, config.Layout())))
    return folder

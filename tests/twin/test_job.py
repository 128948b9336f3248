from pathlib import Path
import json
import pytest
from tests.twin import jobs, project
from tests.twin.project import config

FAMILIES={"qwen2": {}, "deepseek_v3": {"expert_model_parallel_size": 2}}

@pytest.mark.parametrize("family", FAMILIES)
def test_job(twin, tmp_path, family):
    base = project.make_base(tmp_path, family)
    grids = config.Layout(train=config.MegatronGrid(**FAMILIES[family]))
    path = project.short_job(base, grids)
    print(twin.run(jobs.train, [str(path), "run.iterations=2"], size=2, world=False))
    for line in (tmp_path/"runs/job/metrics.jsonl").read_text().splitlines():
        d=json.loads(line); print({k:d[k] for k in d if "gap" in k or k in ("grad_norm","grpo/rewards/mean","actor/kl_loss")})

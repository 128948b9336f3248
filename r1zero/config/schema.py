"""The configuration: one frozen dataclass tree, mirrored by the TOML; a default is written once, here.

Precedence: the defaults below, then the TOML file, then `section.key=value` on the command line (the value in TOML's
own notation; where a field is text, quotes may be left out). An unknown key is an error that names the nearest known
one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from r1zero.config.evaluation import Evaluation
from r1zero.config.toml import LocalPath, OwnFunction


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str = "run"
    """The run's folder is `dir/name`."""
    dir: LocalPath = "runs"
    seed: int = 1
    """Seeds the order of prompts, the sampling of responses and the trainer's generators."""
    iterations: int = 100
    """Steps of GRPO: one rollout and one update each."""
    device: Literal["cpu", "cuda", "npu"] = "cpu"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights and activations in trainer and engine. Gradients and Adam's state are fp32 always."""
    timeout_s: int = 1800
    """A collective that waits longer ends the job."""
    phase_timeout_s: int = 1500
    """A rank that is longer in a phase (loading, rollout, update, save ...) ends the job by name; likewise one that is
    5 times longer than ever before in the run, and over 120 s. Below timeout_s, whose error names nobody; above the
    first rollout. 0:
    never."""
    silence_timeout_s: int = 120
    """A rank whose process gives no sign of life for so long (stopped, or killed on a lost node) ends the job; 0:
    never."""
    deterministic: bool = False
    """Two runs are bit-equal: only algorithms that are, at whatever cost on the device."""


@dataclass(frozen=True, kw_only=True)
class Model:
    path: LocalPath = ""
    """Folder in Hugging Face's format: config.json, tokenizer, safetensors. The reference always has these weights."""
    shape: LocalPath = ""
    """A file of configs/model/ that states the model's shape for planning without weights; must agree with
    config.json."""
    checkpoint: LocalPath = ""
    """A folder written by `convert.py to-mcore`, loaded in place of the safetensors; empty: stream `path` directly."""


@dataclass(frozen=True, kw_only=True)
class Data:
    path: LocalPath = ""
    """Folder written by preprocess.py."""
    shuffle: bool = True
    """Every epoch in a new seeded order; false: the order of the file."""


@dataclass(frozen=True, kw_only=True)
class MegatronGrid:
    """Train's or the reference's place. What the degrees leave of the ranks is data parallel."""

    ranks: str = "all"
    """World ranks: "all", or ranges such as "0-5,8"."""
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    """Experts are spread over this many of a stage's ranks. At 1 they are cut by the tensor degree like the rest."""
    pipeline_layers: tuple[int, ...] = ()
    """Transformer layers of each pipeline stage; empty: equal stages."""


@dataclass(frozen=True, kw_only=True)
class VllmGrid:
    """Rollout's place. What the degrees leave of the ranks are replicas."""

    ranks: str = "all"
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    """Engines that share one set of experts (with enable_expert_parallel); they decode in lockstep."""
    enable_expert_parallel: bool = False
    """Experts are spread over tensor x data parallel ranks instead of being cut by the tensor degree."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    world: int = 0
    """Ranks that the file is made for, refused if others start it; 0: any number."""
    train: MegatronGrid = field(default_factory=MegatronGrid)
    reference: MegatronGrid | None = None
    """Absent: colocated with train in train's own grid, by exchanging weights."""
    rollout: VllmGrid = field(default_factory=VllmGrid)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    temperature: float = 1.0
    """Both engines divide their logits by it."""
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 2048
    max_num_seqs: int = 128
    """Responses that one engine decodes at a time."""
    max_num_batched_tokens: int = 4096
    """Tokens of one scheduler step; at least max_prompt_tokens + max_response_tokens where prefill is not chunked."""
    kv_cache_gib: float = 1.0
    """GiB of key-value cache for each rank."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM, by its own names; those that would break correctness are refused with the reason."""


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Defaults: the recipe of DeepSeek-R1-Zero-671B as MindSpeed-RL published it."""

    prompts_per_iteration: int = 384
    """P: prompts of one iteration, over all ranks."""
    group_size: int = 32
    """G: responses to each prompt."""
    kl_coef: float = 0.001
    """Weight of the KL to the reference in the loss; 0: no reference is loaded."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman, "Approximating KL divergence" (2020). The published 384-die file has k1."""
    clip_ratio: float = 0.2
    """The ratio to the old policy is clipped to 1 - clip_ratio .. 1 + clip_ratio (Schulman et al. 2017, equation 7)."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    rules: dict[OwnFunction, float] = field(default_factory=lambda: {"base_acc": 1.0})
    """Rule name, or `path.py:function`, and its weight; the reward is the weighted sum. The README says what a function
    gets."""
    workers_per_rank: int = 1
    """Processes that grade on each rank that generates."""
    deadline_s: float = 5.0
    """Seconds after which the worker that grades one response is killed; the response then has no reward."""
    worker_memory_mib: int = 512
    """MiB that a grading process may take beyond what it starts with; a response that needs more has no reward."""
    max_unscored_share: float = 0.5
    """The run stops when more than this share of an iteration's responses got no reward."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam with fp32 master weights, sharded over data-parallel ranks; the rate is constant after the warm-up."""

    lr: float = 1e-6
    lr_warmup_iterations: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    """Applied to matrices only: norms and biases are never decayed (megatron-core's rule)."""
    clip_grad: float = 1.0
    """Largest global 2-norm of the gradient."""
    max_skipped: int = 5
    """The run stops when so many updates in a row were skipped, for a loss or gradient that is not finite."""
    offload: bool = False
    """Master weights and Adam's moments wait in pinned host memory, and are on the device while the optimizer steps."""


@dataclass(frozen=True, kw_only=True)
class Train:
    micro_batch_tokens: int = 4096
    """Tokens of one packed micro-batch; one response with its prompt must fit."""
    recompute: Literal["none", "full"] = "none"
    """full: only the layers' inputs are kept for the backward pass."""
    offload: bool = False
    """While the engine on the same ranks generates, the trainer's weights wait in host memory and its gradients have no
    memory."""


@dataclass(frozen=True, kw_only=True)
class Sync:
    """The trained weights' way to the engines after every update."""

    staging_mib: int = 512
    """MiB that a rank sends and receives in one collective, both together. More means fewer collectives; a 64 GiB die
    has some 10 GiB left while weights travel."""
    verify_every: int = 1
    """Every so many syncs, the first among them, each piece's checksum is compared with its sender's; 0: never."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    every_iterations: int = 0
    """Save after every so many iterations; 0: not for that reason."""
    after_last: bool = True
    """Save after the last iteration, too. A run that is asked to end is saved in any case."""
    every_minutes: float = 0.0
    """Save after the iteration in which so much time has gone by since the last save; 0: never for that reason."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Kept beside them: those of every so many iterations; 0: none."""
    on_failed_save: Literal["stop", "continue"] = "stop"
    """What a full disk does to the run; the checkpoint before stays in any case. After the last iteration it always
    stops."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue the run folder's newest checkpoint if there is one; never: refuse a folder that has one."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    dump_samples: int = 2
    """Responses written to samples.jsonl each iteration."""
    trackers: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow"], ...] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl. A tracker is imported only if it is named here."""
    dump: Literal["few", "all"] = "few"
    """all: besides, every response as Parquet, samples/iteration_N/engine_E.parquet in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The gate that compares the engines' logprobs with the trainer's, at every start and while the run goes on."""

    every_syncs: int = 20
    """Checked again in every so many iterations, after their sync; 0: only at a start."""
    prompts: int = 4
    """The data's first prompts, put to every engine; 0: no gate."""
    tokens: int = 16
    """Tokens that each engine samples to each of them."""
    tolerance: float = 0.0
    """Mean absolute difference of a token's logprob beyond which the run stops; 0: 1e-5 in float32, 0.05 in
    bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """When rank 0 warns of figures that turn; the run goes on."""

    window: int = 10
    """Iterations over which a figure is judged; 0: no alarms."""
    spike_factor: float = 10.0
    """Loss or gradient outside its window's range by so many times that range."""
    collapse_share: float = 0.5
    """Of the best reward, counted from the lowest, that must be lost."""
    gap_factor: float = 3.0
    """The engines' gap is so many times its first ..."""
    least_gap: float = 1e-5
    """... and at least this."""
    entropy_share: float = 0.1
    """Of the first entropy, below which it is called lost if the reward is low."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `--plan` supposes of the machine; a run does not read it."""

    assume: dict[str, float] = field(default_factory=dict)
    """Values in place of those of the device's row in plan.machine, by the row's names and in its units."""


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    layout: Layout = field(default_factory=Layout)
    rollout: Rollout = field(default_factory=Rollout)
    grpo: Grpo = field(default_factory=Grpo)
    reward: Reward = field(default_factory=Reward)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    sync: Sync = field(default_factory=Sync)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    metrics: Metrics = field(default_factory=Metrics)
    evaluation: Evaluation = field(default_factory=Evaluation)
    parity: Parity = field(default_factory=Parity)
    alarms: Alarms = field(default_factory=Alarms)
    plan: Plan = field(default_factory=Plan)

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response that the engines are asked for, evaluation included."""
        return max(
            self.rollout.max_response_tokens, *(one.max_response_tokens for one in self.evaluation.sets.values()), 0
        )

"""The configuration: a tree of frozen dataclasses that mirrors the TOML file. Each default is defined once: here, or
in grpo.py and evaluation.py for the sections of these names.

Precedence: the defaults below, then the TOML file, then `section.key=value` on the command line. The value is in TOML
notation; a text field may omit the quotes. An unknown key is an error that names the nearest known key, or all of them.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from r1zero.config.evaluation import Evaluation
from r1zero.config.grpo import Grpo
from r1zero.config.toml import LocalPath, OwnFunction


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run as a whole."""

    name: str = "run"
    """The run's folder is `dir/name`."""
    dir: LocalPath = "runs"
    seed: int = 1
    """Seeds the order of prompts, the sampling of responses and the trainer's generators."""
    iterations: int = 100
    """Number of iterations of GRPO: one rollout and one update each."""
    device: Literal["cpu", "cuda", "npu"] = "cpu"
    """The device on which each rank trains and generates."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """Type of weights and activations in trainer and engine. Gradients and Adam's state are always fp32.

    auto: bfloat16, except on a CPU that has no instructions to multiply it (AVX512-BF16 or AMX); there float32.
    float16: eight times the precision of bfloat16, so trainer and engine differ less (Qi et al., "Defeating the
    Training-Inference Mismatch via FP16", 2025), but nothing above 65,504. The loss is scaled by itself."""
    threads: int | Literal["auto"] = "auto"
    """Threads of each rank's operators on the CPU. auto: OMP_NUM_THREADS if it is set; else, with device = "cpu", the
    rank's share of the cores that the ranks of its host may use, and 1 for a model of less than 256 hidden units, for
    which dividing costs more than it gives. Sums depend on it in their last bits."""
    timeout_s: int = 1800
    """Seconds after which a waiting collective ends the job."""
    phase_timeout_s: int = 1500
    """Seconds that a rank may spend in one phase (loading, rollout, update, save ...). A rank that takes longer ends
    the job with an error that names it, as does one that takes over 120 s and 5 times longer than ever before in this
    run. Set it below timeout_s, whose error names no rank, and above the duration of the first rollout. 0: no limit."""
    silence_timeout_s: int = 120
    """Seconds without a heartbeat after which a rank (stopped, or killed with its node) ends the job. 0: no limit."""
    deterministic: bool = False
    """Use only deterministic algorithms, so that two runs are bit-equal, even where they are slower."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model to train."""

    path: LocalPath = ""
    """Folder in Hugging Face's format: config.json, tokenizer, safetensors. The reference always has these weights."""
    shape: LocalPath = ""
    """A file in configs/model/ with the model's shape, for planning without weights. If config.json exists too, both
    must agree."""
    checkpoint: LocalPath = ""
    """A folder written by `convert.py to-mcore`, loaded instead of the safetensors; empty: load from `path`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values of config.json that replace those of the file, such as rope_theta. Only fields that do not describe the
    weights can be overridden; r1zero/model/overrides.py lists them."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The prompts to train on."""

    path: LocalPath = ""
    """Folder written by preprocess.py."""
    shuffle: bool = True
    """Use a new seeded order in every epoch; false: the order of the file."""


@dataclass(frozen=True, kw_only=True)
class MegatronGrid:
    """The grid of train or of the reference. The ranks that the degrees leave over are data parallel."""

    ranks: str = "all"
    """World ranks: "all", or ranges such as "0-5,8"."""
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    """Experts are distributed over this many ranks of a stage. At 1, tensor parallelism splits each of them."""
    pipeline_layers: tuple[int, ...] = ()
    """Number of transformer layers in each pipeline stage; empty: equal stages."""


@dataclass(frozen=True, kw_only=True)
class VllmGrid:
    """The grid of rollout. The ranks that the degrees leave over are replicas."""

    ranks: str = "all"
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    """Engines that share one set of experts (with enable_expert_parallel) and decode in lockstep."""
    enable_expert_parallel: bool = False
    """Distribute experts over tensor x data parallel ranks instead of splitting each by the tensor degree."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The grids of the three roles over the ranks of the world."""

    world: int = 0
    """Number of ranks that this file is for; another number is refused. 0: any number."""
    train: MegatronGrid = field(default_factory=MegatronGrid)
    reference: MegatronGrid | None = None
    """None: colocated with train, in train's grid; its weights take the policy's place for a forward pass."""
    rollout: VllmGrid = field(default_factory=VllmGrid)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Generation of responses by vLLM."""

    temperature: float = 1.0
    """Trainer and engine both divide the logits by it."""
    max_prompt_tokens: int = 1024
    """Data with a longer prompt is refused."""
    max_response_tokens: int = 2048
    max_num_seqs: int = 128
    """Number of responses that one engine decodes at a time."""
    max_num_batched_tokens: int = 4096
    """Tokens in one scheduler step. A longer prompt is prefilled in chunks, over several steps."""
    kv_cache_gib: float = 1.0
    """GiB of key-value cache on each rank."""
    graph: bool = True
    """Record decoding steps in CUDA or ACL graphs when the engine is built, so that a step costs no launches. A CPU has
    no graphs."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Additional arguments of vLLM, under its own names. Those that would break correctness are refused with the
    reason."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Grading of responses."""

    rules: dict[OwnFunction, float] = field(default_factory=lambda: {"base_acc": 1.0})
    """Rule name, or `path.py:function` -> weight. The reward is the weighted sum. The README documents the arguments
    of a function."""
    workers_per_rank: int = 1
    """Number of grading processes on each rank that generates."""
    deadline_s: float = 5.0
    """Seconds to grade one response, after which its worker is killed and the response has no reward."""
    worker_memory_mib: int = 512
    """MiB that a grading process may allocate beyond its memory at the start; a response that needs more has no
    reward."""
    max_unscored_share: float = 0.5
    """The run stops if a larger share of an iteration's responses has no reward."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam with fp32 master weights, sharded over data-parallel ranks. The rate is constant after the warm-up."""

    lr: float = 1e-6
    lr_warmup_iterations: int = 0
    """Number of iterations over which the rate rises to `lr`."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    """Applied only to matrices: norms and biases are never decayed (megatron-core's rule)."""
    clip_grad: float = 1.0
    """Largest global 2-norm of the gradient; a larger gradient is scaled down."""
    max_skipped: int = 5
    """The run stops after this many consecutive updates were skipped because loss or gradient was not finite."""
    offload: bool = False
    """Keep master weights and Adam's moments in pinned host memory except while the optimizer steps."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Forward and backward passes of the trainer."""

    micro_batch_tokens: int = 4096
    """Tokens in one packed micro-batch; a prompt with its response must fit."""
    share_prompts: bool = True
    """Compute a prompt once for all of its responses in a micro-batch, instead of once for each response. The results
    are the same up to rounding."""
    routing_replay: bool = False
    """Models with experts: trainer and reference send each token to the experts that the engine chose for it while it
    sampled, so that rounding in the routers does not make them compute another model than the engine (Ma et al.,
    "Rollout Routing Replay", 2025). A sample then carries 2 bytes for each token, layer with experts and expert per
    token. The gradient of the router is that of the chosen experts. The engine then schedules no step ahead, and
    on CUDA records none in graphs."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes a second time, so that less is kept for it. full: layers, of which only the
    inputs are kept; selective: the feed-forward part of each layer, dense or with experts."""
    recompute_layers: tuple[int, ...] = ()
    """With recompute = "full": how many layers of each pipeline stage are recomputed, one number per stage; empty: all.
    Later stages keep fewer micro-batches at a time, so they need to recompute less; --plan proposes numbers."""
    overlap_grad_reduce: bool = True
    """Reduce the gradients of some layers while the backward pass of others runs. Not on a CPU, which has no time
    left for it."""
    offload: bool = False
    """While the engine on the same ranks generates, hold the trainer's weights on the host and free its gradients."""


@dataclass(frozen=True, kw_only=True)
class Sync:
    """Transfer of the trained weights to the engines after every update."""

    staging_mib: int = 512
    """MiB that a rank sends and receives in one collective, together. A larger value means fewer collectives; a 64 GiB
    die has some 10 GiB free during the transfer."""
    verify_every: int = 1
    """Compare checksums of what was sent and received in every N-th sync, beginning with the first; 0: never."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Saving, keeping and resuming checkpoints."""

    every_iterations: int = 0
    """Save every N iterations; 0: not by number of iterations."""
    after_last: bool = True
    """Also save after the last iteration. A run that a signal stops is always saved."""
    every_minutes: float = 0.0
    """Save after the iteration in which this time since the last save is exceeded; 0: not by time."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep the checkpoint of every N-th iteration; 0: none."""
    on_failed_save: Literal["stop", "continue"] = "stop"
    """What to do if the disk is full. Earlier checkpoints are kept in any case. After the last iteration the run always
    stops with an error."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest checkpoint in the run's folder, if any; never: refuse a folder that has one."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is recorded beside the metrics."""

    dump_samples: int = 2
    """Number of responses written to samples.jsonl in each iteration."""
    trackers: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow"], ...] = ("tensorboard",)
    """Where metrics are sent in addition to metrics.jsonl. A tracker is imported only if it is named here."""
    dump: Literal["few", "all"] = "few"
    """all: also writes every response as Parquet, samples/iteration_N/engine_E.parquet in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The parity gate, which compares the engines' logprobs with the trainer's at each start and during the run."""

    every_syncs: int = 20
    """Repeat the comparison after the sync of every N-th iteration; 0: only at a start."""
    prompts: int = 4
    """Number of prompts that every engine answers; 0: no gate. Each check takes the next prompts of the data. The first
    is lengthened and answered twice, the second time from the prefix cache."""
    tokens: int = 16
    """Number of tokens that each engine samples for each prompt."""
    tolerance: float = 0.0
    """The run stops if the mean absolute difference of the logprobs is larger. 0: 1e-5 in float32; in bfloat16 0.05, or
    0.1 for models with experts; in float16 0.005, or 0.02. In float32 the limit is at least 0.1 for tokens
    that follow a tie between experts, where rounding may make engine and trainer choose differently."""


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """When rank 0 warns that metrics deteriorate; the run continues."""

    window: int = 10
    """Number of iterations over which a metric is judged; 0: no alarms."""
    spike_factor: float = 10.0
    """Warn if loss or gradient norm lies outside the range of its window by this many times that range."""
    collapse_share: float = 0.5
    """Warn if this share of the rise from the lowest to the best reward is lost."""
    gap_factor: float = 3.0
    """Warn if the logprob gap of the engines is this many times its first value ..."""
    least_gap: float = 1e-5
    """... and at least this large."""
    highest_gap: float = 0.0
    """Warn if the logprob gap of the engines is larger, whatever it was at first; 0: the parity gate's tolerance, or
    that of tokens that follow a tie, for models with experts in float32."""
    entropy_share: float = 0.1
    """Warn if the entropy falls below this share of its first value while the reward is low."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The machine that `--plan` assumes; training does not read it."""

    assume: dict[str, float] = field(default_factory=dict)
    """Overrides of values in the device's row in plan.machine, with the names and units of that row."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of a training run."""

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

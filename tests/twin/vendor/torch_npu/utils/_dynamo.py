"""torch_npu.utils._dynamo. Importing torch_npu imports these modules of torch, of which transfer_to_npu replaces
functions."""

import torch._inductor.autotune_process
import torch._inductor.compile_fx
import torch._inductor.fx_passes.joint_graph
import torch._inductor.fx_passes.post_grad
import torch._inductor.runtime.autotune_cache
import torch.distributed.checkpoint.filesystem  # noqa: F401

use_jit_script = False

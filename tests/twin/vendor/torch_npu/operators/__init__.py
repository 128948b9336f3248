"""What the vendors' operators compute. Importing this package registers all stand-ins; `registry.define` makes them
callable."""

from torch_npu.operators import aten, attention, cache, elementwise, experts, others  # noqa: F401
from torch_npu.operators.registry import CALLS, define  # noqa: F401

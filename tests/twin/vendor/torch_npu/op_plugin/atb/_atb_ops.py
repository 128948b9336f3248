"""torch_npu.op_plugin.atb._atb_ops."""


def _register_atb_extensions() -> None:
    """ATB's operators are defined by torch_npu/__init__.py."""

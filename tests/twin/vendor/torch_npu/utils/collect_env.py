"""torch_npu.utils.collect_env."""


def get_cann_version(*_: str) -> str:
    return "9.1.0"

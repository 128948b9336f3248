"""Of the vendor's package only transfer_to_npu, which is the wheel's own file: tests/twin/environment.py unpacks it."""

import os

__path__.append(os.path.join(os.environ["TWIN_WHEELS"], "torch_npu", "contrib"))

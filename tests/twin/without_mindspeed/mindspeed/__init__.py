"""Stand-in for MindSpeed, which is on no package index: see megatron_adaptor."""

"""Of the vendor's package what transfer_to_npu and MindSpeed ask for."""

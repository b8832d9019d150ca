"""What networks are conditioned on, one kind a file; see `stage.protocols.Condition`."""

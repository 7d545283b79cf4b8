"""HTTP hooks: questions to the operator's backend, bounded, cached and signed."""

"""Everything that is checked before MindSpore is imported."""

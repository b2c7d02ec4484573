"""Who computes what, worked out without MindSpore: layers of a stage, slices of adapters, arithmetic."""

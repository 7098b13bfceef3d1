"""The models: plain torch, no Ray, no files. `build_model` is the one place that knows every architecture."""

"""One module a model architecture; its name is the `model_type`."""

"""What models are for, beside writing text: one module a task, all on `tensors`."""

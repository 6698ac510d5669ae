"""Model files to ONNX model directories, offline."""

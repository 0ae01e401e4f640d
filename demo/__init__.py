"""A small trained detector of drawn shapes, with a good and a bad ONNX export of it."""

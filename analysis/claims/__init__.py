"""What a certification claims, written for others to check: ONNX, VNN-LIB, and certificates that a checker verifies."""

"""Copies what a run measures into other programs that show experiments: TensorBoard, MLflow, Weights & Biases."""

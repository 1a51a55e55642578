"""Plain PyTorch: models, training and testing. Nothing here imports Flower."""

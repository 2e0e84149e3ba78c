"""Training: the autoencoder, patho-align, and the checkpoints that both continue from."""

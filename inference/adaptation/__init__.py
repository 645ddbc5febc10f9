"""What several kernels share: mass matrices, step sizes from priors and curvature, BlackJAX's tuning."""

"""What a posterior predicts on held-out data, averaged over its draws, and how good that is."""

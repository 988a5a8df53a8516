"""How do drivers work that model the losses? Gaussian processes over coarse and fine, and volumes that they promise."""

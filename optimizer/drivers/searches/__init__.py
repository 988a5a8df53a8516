"""What do drivers that ask for scores have in common? Studies of Optuna, surrogates, and who dominates whom."""

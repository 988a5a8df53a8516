"""What is wanted, and what will it take? Job files, opened, checked and told on paper."""

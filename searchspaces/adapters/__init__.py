"""What is an expert that is an adapter? Low-rank task vectors, which no step makes whole."""

"""What are methods composed of? Sparsifiers, spans, spectra, systems of equations: mathematics of one tensor."""

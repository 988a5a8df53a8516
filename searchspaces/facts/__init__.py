"""What is known of a pool before any candidate? Computed once on a host, kept beside it, and mapped."""

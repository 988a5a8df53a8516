"""Which candidates are worth more items? What is told of them from some, and the rules by which they go on."""

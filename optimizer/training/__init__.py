"""What is learnt from the items of experts? Losses to descend, teachers to follow, statistics for methods."""

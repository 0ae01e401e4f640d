"""What two inputs of one model differ in, before any layer is looked at: the preprocessing."""

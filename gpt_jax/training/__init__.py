"""Training as pure functions: loss, optimizers, the step, evaluation, and how they are placed on devices."""

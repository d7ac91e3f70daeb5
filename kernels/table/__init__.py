"""What is written once for all backends: profiles, their printer, and the description of a perceptron."""

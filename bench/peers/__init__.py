"""Other ways to compute the same, each as its own users would write it, and tuned."""

"""The backend "cuda": compiled CUDA."""

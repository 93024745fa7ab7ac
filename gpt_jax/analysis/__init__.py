"""Analysis of models: cost, memory plans, and embeddings."""

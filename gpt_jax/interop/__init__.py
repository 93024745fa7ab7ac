"""Reading and writing published models: one table per family, in which every tensor has its place."""

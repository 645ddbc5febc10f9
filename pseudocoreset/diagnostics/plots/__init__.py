"""Pictures of a coreset, of the course of a fit, and of chains."""

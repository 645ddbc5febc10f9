"""How work meets a machine: choices for a backend, the devices of a mesh, chunks of rows, limits, progress."""

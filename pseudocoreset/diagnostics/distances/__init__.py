"""How far two posteriors are from each other: in what they predict, in their draws, in their parameters."""

"""Files: safetensors directories that are whole or not there, checkpoints, checks of what is read."""

"""What predictions do away from the data they were learned for: corrupted images, foreign inputs."""

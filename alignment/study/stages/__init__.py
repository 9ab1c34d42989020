"""What each stage of a study does: it fills an artefact's directory from its inputs."""

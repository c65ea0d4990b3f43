"""Arrays on disk: artefacts with their manifests, vectors in files, class statistics."""

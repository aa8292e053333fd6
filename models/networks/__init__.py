"""The networks: Hu et al.'s for molecules, PyG's for graphs, SchNet for structures."""

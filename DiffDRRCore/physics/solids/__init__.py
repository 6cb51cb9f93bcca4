"""Things in the beam that are no voxels: closed meshes, and where rays enter and leave them."""

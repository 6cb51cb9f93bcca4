"""MRML nodes in, MRML nodes out: everything the module does with a scene, without Qt.

Every function is given the scene or a node of it; nothing here knows the application. World is RAS in mm. Importing
anything from this folder loads torch.
"""

"""The widgets of the module, one small class for each section of the panel."""

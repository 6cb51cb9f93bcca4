"""Which pixels count: metal, the beam's field, where the CT shows."""

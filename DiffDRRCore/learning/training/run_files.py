"""Names of what the folder of a training holds; nothing else is loaded for them."""

FORMAT = "DiffDRRSlicer training"  # of the options
OPTIONS, LOG, STATE = "training.json", "log.csv", "state.json"
CHECKPOINT, MODEL, EVENTS = "checkpoint.safetensors", "model.safetensors", "tensorboard"
STOP = "stop"

"""Networks that find the pose of an X-ray, trained on simulated images of the CT."""

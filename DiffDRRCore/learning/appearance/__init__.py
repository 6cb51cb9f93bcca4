"""Simulated images that look like X-rays: physics, augmentation of grey values, spectra."""

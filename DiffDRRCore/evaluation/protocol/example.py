"""A protocol to start from."""

EXAMPLE = """\
# What is evaluated: `python -m DiffDRRCore evaluate THIS_FILE --output FOLDER`.
# Lengths in mm, angles in degrees. Only 'dataset' and 'starts' must be there; the others show their defaults.

dataset:
  simulated:              # X-rays simulated from a CT. For a dataset on disk, in place of 'simulated':
    ct: phantom           #   path: ipcai_2020_full_res_data.h5    (DeepFluoro, Ljubljana, or a folder)
    shape: [96, 72, 84]   #   options: {crop: 50}                  (of that kind of dataset)
    spacing: 4.0
    views:                # C-arm angles about the CT's centre: primary + LAO, secondary + CRA
      - {primary: 0, secondary: 0}
      - {primary: 90, secondary: 0}
    size: 96              # pixels, square
    field_mm: 400         # side of the detector
    sdd: 1020             # source to detector
    sod: 850              # source to isocentre
    photons: 10000        # per pixel with nothing in the way
    seed: 0               # of the noise

subjects: all             # or a list of names
views: single             # each X-ray alone; 'groups': together those that show one instant; or a list of names

starts:                   # one of:
  kind: sampled           # random motions of the C-arm away from the reference pose
  count: 5
  distribution: normal    #   or uniform, within the same numbers
  degrees: 5
  plane_mm: 10
  depth_mm: 30
# {kind: sampled, bins_mm: [0, 20, 40, 60, 80], per_bin: 20}           at these mTREs, for the capture range
# {kind: offsets, offsets: [[0, 0, 5, 10, 0, 30]]}                     three angles; right, down, depth
# {kind: landmarks, noise_px: 2, count: 3}                             from annotated landmarks, with click noise
# {kind: header}                                                       what the X-ray's header says
# {kind: fixed, primary: 0, secondary: 0, sod_mm: 850}                 the same C-arm angles for all
# {kind: model, path: run/model.safetensors}                           what a trained network says

preprocessing:            # of the X-ray, in this order
  crop: null              # [top, bottom, left, right] pixels, or 'find'
  i0: null                # intensity of the open beam; null estimates it
  background: false       # true, or a number, is subtracted
  smoothing: 0            # pixels
  size: null              # [height, width]
  equalize: null          # hard or soft

method:
  name: DiffDRRSlicer     # names the rows of the tables
  options:                # of DiffDRRCore.register; those left out have its defaults
    similarity: zncc      #   or {name: lncc, size: 9}
    sizes: [32, 64, 96]
    limits: {bounds: [null, null, null, null, null, 100]}
  crop_margin_mm: null    # cut the X-ray to the CT's shadow at the start and so much more (at the detector)

targets:                  # where errors are measured: landmarks (of the dataset), or points in bone
  bone: {count: 200, threshold: 150, seed: 0}
thresholds_mm: [1, 2, 5, 10]   # mTRE below which a case is a success
measures: []              # xvr_mtre_mm, diffpose_mtre_mm: what these papers call mTRE
seed: 0                   # of the starts
"""

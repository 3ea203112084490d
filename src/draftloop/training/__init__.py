"""Training, as data walks through it: examples -> plan -> batches -> teacher -> losses -> step -> loop -> train."""

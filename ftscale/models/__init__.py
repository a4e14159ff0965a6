"""From a name to a model that trains fast: load, quantise, adapt, freeze; layout, attention, output head."""

"""GPUs: driver readings, the energy of a request, and utilisation of the hardware."""

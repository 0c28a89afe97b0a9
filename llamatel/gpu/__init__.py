"""The GPUs under a server: what the driver tells, the energy of a request, how close it comes to the hardware."""

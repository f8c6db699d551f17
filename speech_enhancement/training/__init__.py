"""Training: batches from disk or made on the fly, devices, the loop."""

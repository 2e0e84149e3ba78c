"""Large images from a trained model: windows and their weights, the canvas, timestep tracking, streamed decoding."""

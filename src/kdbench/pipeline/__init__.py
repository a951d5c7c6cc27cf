"""From a finished run to a device: chains of compressions, and the commands that compress, export and measure."""

"""The results folder: written, read, verified, exported, plotted."""

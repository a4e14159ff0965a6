"""What every layer stands on: errors, logs, files; nothing here imports torch."""

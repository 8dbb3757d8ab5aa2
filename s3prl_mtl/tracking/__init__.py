"""Where numbers go: metrics.jsonl, TensorBoard, results.json, the terminal."""

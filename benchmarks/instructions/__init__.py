"""Instructions that a streamed token and a request cost: counted, not timed, so that a busy machine changes nothing.

``python -m benchmarks.instructions`` compares with ``baseline.json``; ``--write`` makes what is counted the baseline.
"""

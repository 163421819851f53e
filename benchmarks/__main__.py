"""`python -m benchmarks`: run every benchmark, results in `benchmarks/results/`."""

from benchmarks import harvest, step

if __name__ == "__main__":
    harvest.main()
    step.main()

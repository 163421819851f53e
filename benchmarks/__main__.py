"""`python -m benchmarks`: run every benchmark, results in `benchmarks/results/`."""

from benchmarks import dead, floor, harvest, naive, quality, scaling, step

if __name__ == "__main__":
    harvest.main()
    step.main()
    floor.main()
    scaling.main()
    quality.main()
    dead.main()
    naive.main()

"""`python -m benchmarks`: run every benchmark, results in `benchmarks/results/`."""

from benchmarks import (
    dead,
    floor,
    harvest,
    kill,
    naive,
    quality,
    reading,
    scaling,
    step,
    storage,
)

if __name__ == "__main__":
    harvest.main()
    reading.main()
    storage.main()
    kill.main()
    step.main()
    floor.main()
    scaling.main()
    quality.main()
    dead.main()
    naive.main()

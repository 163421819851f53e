"""`python -m benchmarks`: run every benchmark, results in `benchmarks/results/`."""

from benchmarks import (
    atlas,
    atlas_page,
    budgets,
    dead,
    edits,
    encoding,
    floor,
    harvest,
    lenses,
    loading,
    naive,
    patching,
    patchscopes,
    probes,
    quality,
    reading,
    recipes,
    scaling,
    screening,
    shrink,
    shuffle,
    steering,
    step,
    storage,
    suite,
    sweep,
    tracking,
    truth,
)
from benchmarks.reliability import __main__ as reliability

if __name__ == "__main__":
    harvest.main()
    reading.main()
    shuffle.main()
    storage.main()
    loading.main()
    reliability.main()
    step.main()
    floor.main()
    sweep.main()
    tracking.main()
    atlas.main()
    atlas_page.main()
    shrink.main()
    scaling.main()
    screening.main()
    encoding.main()
    edits.main()
    steering.main()
    lenses.main()
    patchscopes.main()
    patching.main()
    probes.main()
    quality.main()
    suite.main()
    dead.main()
    recipes.main()
    truth.main(list(truth.RECIPES))
    budgets.main("truth", 8e6)
    budgets.main("real", 2e6)
    naive.main()

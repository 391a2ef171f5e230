"""A plugin of pytest: files that take long begin first, so that no worker is left alone with one at the end."""

# Each takes more than ten seconds of CPU time; the order is that of the time they take, waiting included.
LONGEST = (
    "training/hosts/test_multihost.py",
    "faults/test_exactness.py",
    "parity/test_hugging_face_page.py",
    "training/test_loop.py",
    "faults/test_checkpoint_faults.py",
    "tasks/test_detection.py",
    "faults/test_non_finite.py",
    "training/test_classifier_run.py",
    "parity/real/test_imagenet_mini.py",
    "training/test_scripts.py",
    "parity/training/test_gradient_precision.py",
    "models/ops/test_expansion.py",
    "training/test_parallel.py",
    "parity/golden/weights/test_google_quantized.py",
    "export/test_files.py",
    "export/test_integers.py",
    "faults/test_elastic.py",
    "faults/test_long_run.py",
    "parity/test_peer_suites.py",
    "tasks/test_new_task.py",
    "test_readme.py",
    "faults/test_preemption.py",
    "parity/training/test_training_step.py",
    "test_recipes.py",
    "parity/training/test_losses.py",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(item):
        _, _, name = item.nodeid.partition("::")[0].partition("tests/")
        return places.get(name, len(places))

    items.sort(key=place)

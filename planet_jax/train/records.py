"""The tables of a run folder: `steps.csv`, written as the run goes, and `history.csv`.

Their text travels in the checkpoints, so a run that resumes has exactly the rows of its past,
whatever a crash did to the files.
"""

from pathlib import Path

from planet_jax.files import replacing

SMOOTHING = 0.98  # fastai's beta for the training loss
STEP_COLUMNS = (
    "step", "loss", "smooth_loss", "lr_group0", "lr_group1", "lr_group2", "beta1",
    "images_per_second", "input_wait",
)  # fmt: skip
HISTORY_COLUMNS = ("epoch", "train_loss", "valid_loss", "accuracy_thresh", "fbeta", "time")


class Smooth:
    """fastai's SmoothenValue: a debiased exponential average."""

    def __init__(self, beta: float = SMOOTHING) -> None:
        self.beta, self.average, self.n, self.value = beta, 0.0, 0, float("nan")

    def add(self, value: float) -> float:
        """Takes one more value and returns the average so far."""
        self.n += 1
        self.average = self.beta * self.average + (1 - self.beta) * value
        self.value = self.average / (1 - self.beta**self.n)
        return self.value


class Table:
    """A CSV file that grows by rows of numbers; `text` is all of it."""

    def __init__(self, path: Path, columns: tuple[str, ...], text: str = "") -> None:
        self.path, self.columns = path, columns
        self._parts = [text or ",".join(columns) + "\n"]
        with replacing(path) as temporary:
            temporary.write_text(self._parts[0])

    @property
    def text(self) -> str:
        """The whole file, as it goes into a checkpoint."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def column(self, name: str) -> list[float]:
        """One column's numbers."""
        i = self.columns.index(name)
        return [float(line.split(",")[i]) for line in self.text.splitlines()[1:]]

    def add(self, *values: float) -> None:
        """Appends a row; floats are written so that they read back the same."""
        row = ",".join(repr(value) for value in values) + "\n"
        self._parts.append(row)
        with self.path.open("a") as file:
            file.write(row)

"""Make the weights that `builtin:digitsnet` ships with: pretrained on the digits 0 to 4, for 5 to 9.

Run from the root of a checkout (under a minute): python bench/pretrain_digits.py
Two runs on one machine and one set of package versions give the same bytes; the test split is never looked at
before the end.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from edgeft import data, models, recipe, training

SEED = 0
OUTPUT = Path(models.__file__).parent / "weights" / "digitsnet-digits01234.safetensors"
TASK = recipe.Task(data="builtin:digits-source")
CONFIG = recipe.Training(epochs=15, learning_rate=3e-3, warmup_epochs=1, label_smoothing=0.05, augment="crop")


def report(message: str, *, done: int = 0, total: int = 0) -> None:
    print(f"\r{message}  {done}/{total} ", end="", flush=True)


def main() -> None:
    model = recipe.Model(source="builtin:digitsnet")
    preprocessing = models.default_preprocessing(model)
    splits = data.load(TASK, preprocessing, base=Path(), seed=SEED)
    network = models.build(model, len(splits.classes), base=Path(), seed=SEED, fresh=True).module

    train = training.loader(
        splits.train,
        preprocessing,
        batch_size=CONFIG.batch_size,
        seed=SEED,
        augment=CONFIG.augment,
        shuffle=True,
    )
    val = training.loader(splits.val, preprocessing, batch_size=256)
    training.fit(network, train, val, CONFIG, seed=SEED, progress=report)

    logits, labels = training.predict(network, training.loader(splits.test, preprocessing, batch_size=256))
    accuracy = (logits.argmax(1) == labels).mean()
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # One key of metadata only: safetensors writes several in random order.
    save_file(tensors, OUTPUT, metadata={"classes": " ".join(splits.classes)})
    print(
        f"\n{OUTPUT.name}: {OUTPUT.stat().st_size} bytes, {100 * accuracy:.1f} % of {len(labels)} test digits"
    )


if __name__ == "__main__":
    main()

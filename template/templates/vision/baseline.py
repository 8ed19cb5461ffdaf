"""The number to beat: logistic regression on the same split. ``python -m`` this module prints it."""

from sklearn.linear_model import LogisticRegression

from .digits import load_split


def baseline_accuracy() -> float:
    """Return the test accuracy of a logistic regression that was fitted on the train part."""
    split = load_split()
    images, labels = split["train"]
    test_images, test_labels = split["test"]
    model = LogisticRegression(max_iter=2000).fit(images.reshape(len(images), -1), labels)
    return float(model.score(test_images.reshape(len(test_images), -1), test_labels))


if __name__ == "__main__":
    print(f"logistic regression: test accuracy {baseline_accuracy():.4f}")

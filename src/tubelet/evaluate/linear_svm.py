"""Late fusion by a linear SVM on features or scores of one or several models (Simonyan and Zisserman 2014, section 6).

N training videos, M questions, D values of a part, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.errors import DataError, MissingExtraError


def stack(parts: Sequence[Tensor]) -> Tensor:
    """float64 (N, sum of D): the parts (N,D) side by side, each row of each part divided by its length first, so that no stream
    outweighs another."""
    return torch.cat([torch.nn.functional.normalize(part.double(), dim=1) for part in parts], dim=1)


def fuse(stored: Sequence[Tensor], labels: Tensor, asked: Sequence[Tensor], classes: int, c: float = 1.0) -> Tensor:
    """float64 (M,K) scores, rows sum to 1, of a linear SVM (one class against the rest, penalty c) fitted on the `stack` of stored
    parts (N,D) with labels (N,): a part is a stream's softmax scores, as in the paper, or its embeddings.

    The scores are the softmax of the distances to the planes: they rank, they are no calibrated probabilities. A class without
    training videos comes last. DataError without two classes to tell apart; MissingExtraError without scikit-learn.
    """
    labels = labels.long()
    present = labels.unique()
    if len(present) < 2:
        raise DataError(f"the linear SVM needs training videos of two classes or more, and got {len(present)}")
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise MissingExtraError("the linear SVM needs scikit-learn: pip install 'tubelet[svm]'") from error
    machine = LinearSVC(C=c, random_state=0).fit(stack(stored).numpy(), labels.numpy())
    margins = torch.from_numpy(machine.decision_function(stack(asked).numpy())).double()
    if margins.ndim == 1:  # of two classes there is one plane
        margins = torch.stack([-margins, margins], dim=1)
    scores = torch.full((len(margins), classes), float("-inf"), dtype=torch.float64)
    scores[:, present] = margins
    return scores.softmax(dim=1)

"""Where prompts stand among the training tasks: decides which features tell a network how tasks differ.

The mean embeddings of the tasks' prompts differ most along a few directions, their principal axes. No adapter is needed
to find these, so tasks that have none count as well, and none is predicted from itself.

Legend: B batch, D width of an embedding, R directions, M tasks.
"""

import torch
from torch import Tensor, nn

from hyperconv.condition import check_embeddings

__all__ = ["PromptDirections"]

# In standard deviations of the tasks: prompts unlike all of them lie far out, where nothing was learned.
_LIMIT = 3.0


class PromptDirections(nn.Module):
    """Places along R directions, in standard deviations of the tasks and cut off at 3; zero until `fit` is called.

    >>> directions = PromptDirections(num_directions=2, condition_dim=2)
    >>> directions.fit(torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]]))
    >>> directions(torch.tensor([[7.0, 3.0], [0.0, -1e6]])).abs()
    tensor([[0., 0.],
            [3., 0.]])
    """

    center_D: Tensor
    axes_RD: Tensor
    limit: Tensor

    def __init__(self, num_directions: int, condition_dim: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("center_D", torch.zeros(condition_dim, device=device, dtype=torch.float32))
        self.register_buffer("axes_RD", torch.zeros(num_directions, condition_dim, device=device, dtype=torch.float32))
        self.register_buffer("limit", torch.full((), _LIMIT, device=device, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, conditions_MD: Tensor) -> None:
        """Take the directions from the mean embeddings of M tasks, those first along which they differ most.

        Directions that so few or so like tasks do not have stay zero.

        Raises:
            HyperConvError: another shape, or NaN or infinite values.
        """
        check_embeddings(conditions_MD, len(self.center_D))
        conditions_MD = conditions_MD.double()
        center_D = conditions_MD.mean(0)
        _, values_R, axes_RD = torch.linalg.svd(conditions_MD - center_D, full_matrices=False)
        # Of the smallest only round-off is left.
        num_found = min(len(self.axes_RD), int((values_R > 1e-5 * conditions_MD.norm()).sum()))
        self.center_D.copy_(center_D)
        self.axes_RD.zero_()
        deviation_R = values_R[:num_found, None] / len(conditions_MD) ** 0.5
        self.axes_RD[:num_found] = (axes_RD[:num_found] / deviation_R).float()

    def forward(self, condition_BD: Tensor) -> Tensor:
        """Mean embeddings [B, D] to places [B, R], float32."""
        limit = self.limit.float()
        return ((condition_BD.float() - self.center_D.float()) @ self.axes_RD.float().T).clamp(-limit, limit)

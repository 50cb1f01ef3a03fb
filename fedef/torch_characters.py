"""Small recurrent networks that predict the next character. None draws random numbers when run."""

from __future__ import annotations

from torch import Tensor, nn

EMBEDDING = 8
"""Numbers that stand for a character, as in FedAvg's paper (arXiv:1602.05629)."""

HIDDEN = 128
"""Units; half of that paper's, in one layer where it has two."""


def char_gru(characters: int) -> nn.Module:
    """One GRU layer; d = 62,856 for 72 characters."""
    return _NextCharacter(characters, nn.GRU(EMBEDDING, HIDDEN, batch_first=True))


def char_lstm(characters: int) -> nn.Module:
    """One LSTM layer; d = 80,520 for 72 characters."""
    return _NextCharacter(characters, nn.LSTM(EMBEDDING, HIDDEN, batch_first=True))


class _NextCharacter(nn.Module):
    """Embedding, recurrent layer, linear scores; the state is zero before each sequence."""

    def __init__(self, characters: int, cells: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.cells = cells
        self.scores = nn.Linear(HIDDEN, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Scores (B, T, V) of what follows each character of `text` (B, T)."""
        hidden, _ = self.cells(self.embedding(text.long()))
        scores: Tensor = self.scores(hidden)
        return scores
